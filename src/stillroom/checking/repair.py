"""Mends a cache: what is broken goes to quarantine, and just that is made again.

Whatever is sound is not touched. Without a recipe the broken shards are only set aside.
"""

import hashlib
from dataclasses import replace
from typing import Any

import safetensors.torch

from stillroom.cache.audit_file import AUDIT_FILE
from stillroom.cache.folder import Cache, claim_cache, open_cache
from stillroom.cache.shard_index import stated_by_shards
from stillroom.checking.check import CODECS, MANIFEST, check_cache
from stillroom.checking.check_result import START_ANEW, CheckResult
from stillroom.errors import DamageError
from stillroom.extraction.cache_identity import compose, probe
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.pictures.dataset import PictureSet
from stillroom.recipe import Recipe
from stillroom.recipe_check import check
from stillroom.types import ShardId


def repair(
    result: CheckResult,
    recipe: Recipe | None,
    pictures: PictureSet | None,
    process: ProcessContext,
    *,
    workers: int = 2,
) -> CheckResult:
    """Mend what a check found; return the result afterwards, with a line for each thing done.

    Raises, before anything is touched, UserError where the recipe is not that of the cache, and
    DamageError where what is damaged cannot be made again: the identity, fitted values.
    """
    folder, done = result.cache, []
    kinds = {problem.kind for problem in result.problems}
    if "identity" in kinds:
        raise DamageError(result.problems[0].what, fix=START_ANEW)
    if recipe is not None:  # claiming refuses any other identity than the one that is there
        claim_cache(folder, recipe.name, _identity(recipe, pictures, process.device))
    cache = open_cache(folder)
    if "codecs" in kinds:
        done += _restore_codecs(cache, result)
        cache = open_cache(folder)  # without the fitted values that it may have read
    if "audit" in kinds:
        cache.shards.remove(AUDIT_FILE)
        done.append(f"{folder / AUDIT_FILE} was removed; --audit makes it again")
    bad, missing = _bad_shards(result), cache.missing()
    if _has_other_teachers(result):
        done.append("rows that differ were left alone: too many to be the fault of single shards")
    for shard_id, why in bad.items():
        moved = cache.quarantine(shard_id, "\n".join(why))
        done.append(f"shard {shard_id} was moved to {moved}")
    if recipe is not None and (cache.missing() or not cache.is_fitted):
        done.append(f"made again: {', '.join(map(str, cache.missing()))}")
        cache_teacher(replace(recipe, run=replace(recipe.run, cache=str(folder))), process)
    elif cache.is_fitted and cache.finalize():
        done.append(f"{folder / MANIFEST} is written")
    changed = {*bad, *missing}
    rows_of = None if recipe is None else recipe.rows_of
    after = check_cache(folder, pictures, rows_of, only=changed, workers=workers)
    known = {*after.problems}
    kept = (
        p
        for p in result.problems
        if p.kind in ("shard", "teacher", "pictures") and p.shard not in changed and p not in known
    )
    return replace(
        after,
        problems=(*kept, *after.problems),
        notes=result.notes,
        compared=result.compared,
        repaired=tuple(done),
    )


def _identity(recipe: Recipe, pictures: PictureSet | None, device: str) -> dict[str, Any]:
    """The identity of the cache that stage 1 would make of a recipe; builds its teachers."""
    assert pictures is not None
    check(recipe, pictures)
    teachers = [config.build(device) for config in recipe.teachers]
    return compose(recipe, pictures, teachers, probe(recipe, pictures, teachers, device))


def _restore_codecs(cache: Cache, result: CheckResult) -> list[str]:
    """Write the file of fitted values again where its bytes are known; nothing is fitted again."""
    path, stated = cache.path / CODECS, stated_by_shards(cache.path, cache.fingerprint)
    nothing = hashlib.sha256(safetensors.torch.save({})).hexdigest()
    needs_fit = any(codec.needs_fit for codec in cache.codecs.values())
    if stated is not None and (needs_fit or stated[1] != nothing):
        raise DamageError(
            next(p.what for p in result.problems if p.kind == "codecs"),
            wanted=f"the fitted values that the shards were made with, sha256 {stated[1]}",
            fix=START_ANEW,
        )
    cache.shards.remove(CODECS)
    if needs_fit:
        return [f"{path} was removed: no shard was made with it"]
    cache.publish_fitted({})
    return [f"{path} was written again: nothing of this cache is fitted"]


def _bad_shards(result: CheckResult) -> dict[ShardId, list[str]]:
    """What is wrong with each shard that is to be made again."""
    kinds = {"shard"} if _has_other_teachers(result) else {"shard", "teacher"}
    bad: dict[ShardId, list[str]] = {}
    for problem in result.problems:
        if problem.kind in kinds and problem.shard is not None:
            bad.setdefault(problem.shard, []).append(problem.what)
    return bad


def _has_other_teachers(result: CheckResult) -> bool:
    return any(2 * target.num_wrong > target.num_rows for target in result.compared)
