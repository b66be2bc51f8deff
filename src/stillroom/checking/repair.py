"""Mends a cache: what is broken goes to quarantine, and just that is made again.

Whatever is sound is not touched. Without a recipe the broken parts are only set aside.
"""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillroom.cache.folder import Cache, claim_cache, open_cache
from stillroom.cache.identity import both_sides, differences, fingerprint
from stillroom.cache.scrub import Problem
from stillroom.checking.check import CODECS, IDENTITY, MANIFEST, Report, check_cache
from stillroom.errors import UserError
from stillroom.extraction.cache_identity import compose, probe
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.jsonfile import sync_folder, write_json
from stillroom.pictures.dataset import PictureSet
from stillroom.recipe import Recipe, check
from stillroom.types import ShardId


def repair(
    report: Report,
    recipe: Recipe | None,
    pictures: PictureSet | None,
    process: ProcessContext,
    *,
    workers: int = 2,
    trust_rerun: bool = True,
) -> tuple[Report, list[str]]:
    """Mend what a report names; return the report afterwards and a line for each thing done.

    Without `trust_rerun`, shards of which only the teachers' answers differ are left alone. Raises
    UserError, before anything is touched, where the recipe is not that of the cache.
    """
    folder = report.cache
    done: list[str] = []
    wanted = None if recipe is None else _identity(recipe, pictures, process.device)
    if any(problem.kind == "identity" for problem in report.problems):
        if wanted is None:
            return report, [f"{folder / IDENTITY} can only be made again from the recipe"]
        done += _mend_identity(folder, wanted, report.problems[0].what)
        report = check_cache(folder, pictures, workers=workers)
    cache = open_cache(folder)
    if wanted is not None:
        _refuse_other(cache, wanted)
    stamps = _stamps(cache)
    done += _set_aside(cache, report, trust_rerun)
    cache = open_cache(folder)  # without the fitted values that it may have read
    if not cache.is_fitted and not any(codec.needs_fit for codec in cache.codecs.values()):
        cache.publish_fitted({})
        done.append(f"{folder / CODECS} was written again: no codec of this cache is fitted")
    if recipe is not None and (cache.missing() or not cache.is_fitted):
        done.append(f"made again: {', '.join(map(str, cache.missing()))}")
        run = replace(recipe.run, cache=str(folder))
        cache_teacher(replace(recipe, run=run), process)
    elif cache.is_fitted and cache.finalize():
        done.append(f"{folder / MANIFEST} is written")
    after = _stamps(cache)
    changed = {id_ for id_ in cache.shard_ids() if stamps.get(id_) != after.get(id_)}
    return _check_again(report, changed, pictures, workers), done


def _identity(recipe: Recipe, pictures: PictureSet | None, device: str) -> dict[str, Any]:
    """The identity of the cache that stage 1 would make of a recipe; builds its teachers."""
    assert pictures is not None and pictures.geometry is not None
    check(recipe, pictures)
    specs = [
        spec
        for config in recipe.teachers
        for spec in probe(config, config.build(device), pictures.geometry, recipe.codec, device)
    ]
    return compose(recipe, pictures, specs)


def _mend_identity(folder: Path, identity: dict[str, Any], why: str) -> list[str]:
    """Claim the folder again; raises UserError where its name is not that of this identity."""
    name = folder.resolve().name
    ending = f"-{fingerprint(identity)[:8]}"
    if not name.endswith(ending) or name == ending:
        raise UserError(
            f"{folder / IDENTITY} cannot be made again from this recipe",
            found=f"a folder named {name}",
            wanted=f"one whose name ends in {ending}, as this recipe's does",
            fix="give the recipe, flags and picture shards with which the cache was made",
        )
    done = _quarantine_file(folder / IDENTITY, why)
    claim_cache(folder.resolve().parent, name.removesuffix(ending), identity)
    return [*done, f"{folder / IDENTITY} was made again from the recipe"]


def _refuse_other(cache: Cache, wanted: dict[str, Any]) -> None:
    if different := differences(cache.identity, wanted):
        found, other = both_sides(different)
        raise UserError(
            f"{cache.path} is not the cache of this recipe, so nothing was touched",
            found=found,
            wanted=other,
            fix="give the recipe, flags and picture shards with which the cache was made",
        )


def _set_aside(cache: Cache, report: Report, trust_rerun: bool) -> list[str]:
    """Quarantine bad shards and fitted values, and delete a bad manifest, which is derived."""
    done = []
    for problem in report.problems:
        if problem.kind == "codecs":
            done += _quarantine_file(cache.path / CODECS, problem.what)
        if problem.kind == "manifest":
            problem.path.unlink(missing_ok=True)
            done.append(f"{problem.path} was deleted")
    for shard_id, why in _bad_shards(report, trust_rerun).items():
        process = cache.quarantine(shard_id, "\n".join(why))
        if process is not None:
            done.append(f"shard {shard_id} was moved to {process}")
    return done


def _bad_shards(report: Report, trust_rerun: bool) -> dict[ShardId, list[str]]:
    """What is wrong with each shard that is to be made again."""
    places = ("shard", "teacher") if trust_rerun else ("shard",)
    bad: dict[ShardId, list[str]] = {}
    for problem in report.problems:
        if problem.kind in places and problem.shard is not None:
            bad.setdefault(problem.shard, []).append(problem.what)
    return bad


def _quarantine_file(path: Path, why: str) -> list[str]:
    if not path.exists():
        return []
    process = path.parent / "quarantine" / f"{path.name}-{os.urandom(4).hex()}"
    process.parent.mkdir(exist_ok=True)
    path.rename(process)
    sync_folder(path.parent)
    write_json(process.with_name(f"{process.name}.json"), {"file": path.name, "why": why})
    return [f"{path} was moved to {process}"]


def _stamps(cache: Cache) -> dict[ShardId, tuple[int, int]]:
    """What tells a published folder from one that was made again."""
    stamps = {}
    for shard_id in cache.shard_ids():
        folder = cache.path / cache.shard_spec(shard_id, "-").folder
        if folder.exists():
            stat = folder.stat()
            stamps[shard_id] = stat.st_ino, stat.st_mtime_ns
    return stamps


def _check_again(
    report: Report, changed: Collection[ShardId], pictures: PictureSet | None, workers: int
) -> Report:
    """Check what was changed; of the rest the earlier report holds."""
    after = check_cache(report.cache, pictures, only=changed, workers=workers)
    kept = [p for p in report.problems if _is_of_others(p, changed)]
    return replace(after, problems=(*kept, *after.problems))


def _is_of_others(problem: Problem, changed: Collection[ShardId]) -> bool:
    is_of_rows = problem.kind in ("shard", "teacher")
    return is_of_rows and problem.shard is not None and problem.shard not in changed
