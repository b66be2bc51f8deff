"""Which cache a recipe means: the one that holds what its teachers said of these pictures."""

from collections.abc import Sequence
from typing import Any

from stillroom.cache.audit_file import AUDIT_FILE, MIRROR, MOST_ERROR, read_audit
from stillroom.cache.find import find_caches, match_cache
from stillroom.cache.folder import Cache
from stillroom.errors import UserError, with_urls
from stillroom.pictures.dataset import PictureSet
from stillroom.recipe import Recipe, teacher_identity, views_identity
from stillroom.teachers.configs import MissingTeacherError


def find_cache(recipe: Recipe, pictures: PictureSet, verbose: bool) -> Cache | None:
    """Return the one cache that holds every target the terms need, or None where they need none.

    The teachers' files need not be here: then, and always with `run.recorded_teachers`, a cache
    that recorded such a teacher is taken at its word, and said so. Raises UserError, and
    DamageError for a bad audit where pictures are mirrored.
    """
    wanted = recipe.wanted_targets()
    if not wanted:
        return None
    caches = find_caches(recipe.run.place(recipe.run.cache))
    recorded = [teacher for cache in caches for teacher in cache.teachers]
    teachers: dict[str, Any] = {}
    absent: list[str] = []  # targets of teachers that cannot be compared
    for teacher in recipe.teachers:
        try:
            teachers |= teacher_identity(teacher, not recipe.run.recorded_teachers, recorded)
        except MissingTeacherError:
            teachers |= teacher_identity(teacher, with_files=False)
            absent += teacher.targets
    cache = match_cache(
        recipe.run.place(recipe.run.cache),
        pictures.digest,
        recipe.size_of(pictures),
        {name: teachers[name] for name in wanted},
        views=views_identity(recipe),
        body=recipe.body,
        rebuild=_rebuild(recipe, recipe.body),
        caches=caches,
    )
    if missing := cache.missing():
        raise UserError(
            f"the cache {cache.path} is not complete",
            found=f"{len(missing)} of {len(cache.shard_ids())} shards are missing",
            fix=f"{_rebuild(recipe, cache.identity['body'])}: it goes on where it stopped",
        )
    if recipe.augment.mirror:
        _require_mirror(cache, wanted)
    if verbose:
        names = ", ".join(teachers if recipe.run.recorded_teachers else absent)
        note = f" (of the teachers of {names} the recorded identity is taken)" if names else ""
        print(f"cache: {with_urls(cache.path)}{note}", flush=True)
        _warn_of_noise(recipe, cache)
    return cache


def _require_mirror(cache: Cache, targets: Sequence[str]) -> None:
    """Raise UserError unless the cache's audit says that mirrored targets are those of mirrored
    pictures.
    """
    views = "--augment.no-mirror and --views.count 4, which keeps views, some of them mirrored"
    audit = read_audit(cache)
    measured = {} if audit is None else audit.targets
    unknown = [name for name in targets if MIRROR not in measured.get(name, {})]
    known = {name: measured[name][MIRROR] for name in targets if name not in unknown}
    failed = [
        f"{name} {figures.error:.2g}" for name, figures in known.items() if not figures.passes
    ]
    if failed:
        raise UserError(
            "the teachers do not say of mirrored pictures what they say of the pictures, mirrored",
            found=f"error {', '.join(failed)} in {cache.path / AUDIT_FILE}",
            wanted=f"at most {MOST_ERROR}",
            fix=views,
        )
    if unknown:
        raise UserError(
            "pictures cannot be mirrored while it is not known whether targets can be",
            found=f"no audit of {', '.join(unknown)} in {cache.path}",
            fix=f"stillroom check-cache {cache.path} RECIPE --audit measures it; or {views}",
        )


def _warn_of_noise(recipe: Recipe, cache: Cache) -> None:
    """Say which terms read a target that is right on average only, though that biases them."""
    for term in recipe.terms:
        needs = term.needs
        if needs.target and cache.codecs[needs.target].is_noisy and not needs.is_linear:
            print(
                f"warning: the term {term.label} is not linear in its target {needs.target!r}, so"
                f" the noise of {cache.codecs[needs.target].text} biases it; a cache made with"
                f" --codec.{needs.target} int8 would not",
                flush=True,
            )


def _rebuild(recipe: Recipe, body: str) -> str:
    flag = "" if body == "zarr" else f" --body {body}"
    return (
        f"stillroom cache {recipe.name} --data.shards {recipe.data.shards}"
        f" --run.cache {recipe.run.cache}{flag}"
        " (and the same flags of teachers, views and data.size)"
    )
