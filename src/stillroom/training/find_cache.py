"""Which cache a recipe means: the one that holds what its teachers said of these pictures."""

from pathlib import Path

from stillroom.cache.find import find_caches, match_cache
from stillroom.cache.folder import Cache
from stillroom.errors import UserError
from stillroom.pictures.dataset import PictureSet
from stillroom.recipe import Recipe, teacher_identities
from stillroom.teachers.configs import MissingTeacherError


def find_cache(recipe: Recipe, pictures: PictureSet, verbose: bool) -> Cache | None:
    """Return the one cache that holds every target the terms need, or None where they need none.

    Teacher files need not be present here: then what the cache recorded of them is taken, and said
    so. Raises UserError.
    """
    wanted = recipe.wanted_targets()
    if not wanted:
        return None
    assert pictures.geometry is not None
    recorded = [r for cache in find_caches(Path(recipe.run.cache)) for r in cache.teachers]
    try:
        teachers, known = teacher_identities(recipe, True, recorded), True
    except MissingTeacherError:
        teachers, known = teacher_identities(recipe, with_files=False), False
    try:
        cache = match_cache(
            Path(recipe.run.cache),
            pictures.digest,
            pictures.geometry,
            {name: teachers[name] for name in wanted},
            body=recipe.body,
        )
    except UserError as error:
        raise UserError(
            error.what,
            found=error.found,
            wanted=error.wanted,
            fix=_rebuild(recipe, recipe.body) if "RECIPE" in (error.fix or "RECIPE") else error.fix,
        ) from None
    if missing := cache.missing():
        raise UserError(
            f"the cache {cache.path} is not complete",
            found=f"{len(missing)} of {len(cache.shard_ids())} shards are missing",
            fix=f"{_rebuild(recipe, cache.identity['body'])}: it goes on where it stopped",
        )
    if verbose:
        note = "" if known else " (teacher files are not here: the recorded identity is taken)"
        print(f"cache: {cache.path}{note}", flush=True)
    return cache


def _rebuild(recipe: Recipe, body: str) -> str:
    flag = "" if body == "zarr" else f" --body {body}"
    return (
        f"python tools/cache_teacher.py {recipe.name} --data.shards {recipe.data.shards}"
        f" --run.cache {recipe.run.cache}{flag} (and the same teacher flags)"
    )
