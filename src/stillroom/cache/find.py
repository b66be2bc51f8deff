"""Finding caches: all below a folder, and the one that fits what a recipe needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillroom.cache.folder import IDENTITY_FILE, Cache, open_cache
from stillroom.cache.identity import both_sides, differences, plain
from stillroom.cache.remote_shards import refresh_caches
from stillroom.errors import DamageError, UserError, with_urls
from stillroom.jsonfile import digest


def find_caches(root: Path) -> tuple[Cache, ...]:
    """Return the caches directly below a folder, by name, or the folder itself where it is one.

    One below it that cannot be opened is told and passed over.
    """
    refresh_caches(root)
    if (root / IDENTITY_FILE).exists():
        return (open_cache(root),)
    found = []
    for path in sorted(root.glob(f"*/{IDENTITY_FILE}")):
        try:
            found.append(open_cache(path.parent))
        except (DamageError, UserError) as error:
            where = with_urls(path.parent)
            print(f"warning: the cache {where} is passed over: {error.what}", flush=True)
    return tuple(found)


def match_cache(
    root: Path,
    pictures_digest: str,
    geometry: Sequence[int] | None,
    teachers: dict[str, dict[str, Any]],
    *,
    views: dict[str, Any] | None = None,
    body: str = "zarr",
    rebuild: str = "stillroom cache RECIPE",
    caches: Sequence[Cache] | None = None,
) -> Cache:
    """Return the one cache of these pictures and views with every target of these teachers.

    Codecs are the cache's own affair. `geometry` is (h, w) in pixels and `views` as identity.json
    has them, or None for any; `teachers` has, per needed target, the items of its teacher's
    identity that must be equal. `body` decides between caches that differ in nothing else. Raises
    UserError where none fits (with the nearest one's differences, and `rebuild` as its fix) or
    several do. `caches` are those of `root`, where they are open already.
    """
    caches = find_caches(root) if caches is None else caches
    if not caches:
        raise UserError(
            f"there is no cache in {root}",
            wanted=f"one with {', '.join(sorted(teachers))}",
            fix=rebuild,
        )
    wanted: dict[str, Any] = {"pictures digest": pictures_digest}
    if views is not None:
        wanted["views"] = plain(views)
    if geometry is not None:
        wanted["height and width"] = list(geometry)
    misfits = [(_misfit(cache, wanted, teachers), cache) for cache in caches]
    fitting = _of_body([cache for misfit, cache in misfits if not misfit], body)
    if len(fitting) > 1:
        raise UserError(
            f"{len(fitting)} caches fit",
            found=", ".join(str(cache.path) for cache in fitting),
            wanted="one",
            fix=f"name it: --run.cache {fitting[0].path}",
        )
    if not fitting:
        misfit, nearest = min(misfits, key=lambda pair: len(pair[0]))
        sides = both_sides(misfit)
        raise UserError(
            f"none of the {len(caches)} caches in {root} fits; the nearest is {nearest.path}",
            found=sides[0],
            wanted=sides[1],
            fix=rebuild,
        )
    return fitting[0]


def _of_body(caches: list[Cache], body: str) -> list[Cache]:
    """Keep those of a body where caches have equal rows in different bodies; else keep all."""
    contents = {digest(cache.identity | {"body": body}) for cache in caches}
    if len(contents) > 1:
        return caches
    return [cache for cache in caches if cache.identity["body"] == body] or caches


def _misfit(
    cache: Cache, wanted: dict[str, Any], teachers: dict[str, dict[str, Any]]
) -> list[tuple[str, Any, Any]]:
    """(name, found, wanted) of everything that keeps a cache from being used."""
    known: dict[str, Any] = {
        "pictures digest": cache.identity["pictures"]["digest"],
        "views": cache.identity["views"],
        "height and width": list(cache.geometry),
    }
    found, wanted = {name: known[name] for name in wanted}, dict(wanted)
    for target, teacher in teachers.items():
        recorded = cache.identity["targets"].get(target)
        name = f"teacher of {target}"
        wanted[name] = plain(teacher)
        if recorded is None:
            found[name] = "no such target"
        else:
            found[name] = {member: recorded["teacher"].get(member) for member in teacher}
    return differences(found, wanted)
