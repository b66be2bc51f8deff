"""The check of a whole cache: every byte of it, and whether it is the cache of these pictures.

Costs one read of everything, and sha256 of it. Nothing is written.
"""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from stillroom.cache.audit_file import AUDIT_FILE, read_audit
from stillroom.cache.folder import Cache, open_cache
from stillroom.cache.identity import both_sides, differences
from stillroom.cache.remote_shards import refresh_caches
from stillroom.cache.scrub import Problem, ProblemKind
from stillroom.cache.shard_index import stated_by_shards
from stillroom.checking.check_result import CheckResult
from stillroom.checking.parallel_scrub import RowsOf, scrub_shards
from stillroom.errors import DamageError, StillroomError, UserError
from stillroom.pictures.dataset import PictureSet
from stillroom.types import ShardId

IDENTITY, CODECS, MANIFEST = "identity.json", "codecs.safetensors", "manifest.json"


def find_folder(path: Path) -> Path:
    """Return the cache that a path names: itself, or the only cache in it. Raises UserError."""
    refresh_caches(path)
    caches = [path] if _is_cache(path) else list(filter(_is_cache, sorted(path.glob("*"))))
    if len(caches) != 1:
        several = f"which of the {len(caches)} caches in {path}?"
        raise UserError(
            several if caches else f"there is no cache in {path}",
            found=", ".join(map(str, caches)) or ("no such folder" if not path.exists() else None),
            fix="name one" if caches else "stillroom list shows the caches",
        )
    return caches[0]


def _is_cache(path: Path) -> bool:
    return any((path / name).exists() for name in (IDENTITY, CODECS, MANIFEST))


def check_cache(
    folder: Path,
    pictures: PictureSet | None = None,
    rows_of: RowsOf | None = None,
    *,
    only: Collection[ShardId] | None = None,
    workers: int = 2,
) -> CheckResult:
    """Check a cache folder; of its shards those in `only` (None: all) are read in full.

    `pictures` are the picture shards to compare with, `rows_of` says which rows each of them has
    (None: keys alone are compared). What is wrong is in the result; raises
    UserError for a cache of another version, Stopped, and FailureError where reading fails.
    """
    began = time.perf_counter()
    cache = open_or_problem(folder)
    if isinstance(cache, Problem):
        return CheckResult(cache=folder, problems=(cache,))
    codecs_sha256, problems = _check_codecs(cache)
    if pictures is not None:
        problems += _check_pictures(cache, pictures)
    missing = cache.missing()
    wanted = [
        id_ for id_ in cache.shard_ids() if id_ not in missing and (only is None or id_ in only)
    ]
    bad, num_rows, num_bytes = scrub_shards(
        cache, wanted, codecs_sha256, pictures, rows_of, workers
    )
    return CheckResult(
        cache=folder,
        problems=(*problems, *bad, *_check_manifest(cache, missing), *_check_audit(cache)),
        num_shards=len(wanted),
        num_rows=num_rows,
        num_bytes=num_bytes,
        seconds=time.perf_counter() - began,
    )


def open_or_problem(folder: Path) -> Cache | Problem:
    """Open a cache, or say why it cannot be checked; raises UserError on another version."""
    path = folder / IDENTITY
    if not path.exists():
        return _problem("identity", path, "is missing, so nothing else can be checked")
    try:
        cache = open_cache(folder)
    except (DamageError, OSError) as error:
        return _unreadable("identity", path, error)
    stated = stated_by_shards(cache.path, cache.fingerprint)
    if stated is not None and stated[0] != cache.fingerprint:
        sides = f"it is {cache.fingerprint[:8]}, the shards are of {stated[0][:8]}"
        return _problem("identity", path, f"is the identity of another cache ({sides})")
    return cache


def _problem(kind: ProblemKind, path: Path, text: str) -> Problem:
    return Problem(kind=kind, path=path, what=f"{path} {text}")


def _unreadable(kind: ProblemKind, path: Path, error: DamageError | OSError) -> Problem:
    what = error.what if isinstance(error, DamageError) else f"{path} cannot be read: {error}"
    return Problem(kind=kind, path=path, what=what)


def _check_codecs(cache: Cache) -> tuple[str, list[Problem]]:
    """The sha256 of the fitted values that the shards name, and what is wrong with the file."""
    path, stated = cache.path / CODECS, stated_by_shards(cache.path, cache.fingerprint)
    wanted = stated[1] if stated is not None else "-"
    if not path.exists():
        problem = _problem("codecs", path, "is missing, and there are shards that need it")
        return wanted, [problem] if stated is not None else []
    try:
        found = cache.codecs_sha256
    except (DamageError, OSError) as error:
        return wanted, [_unreadable("codecs", path, error)]
    if stated is None or found == wanted:
        return found, []
    sides = f"sha256: found {found}, wanted {wanted}"
    text = f"is not the file that the shards were made with ({sides})"
    return wanted, [_problem("codecs", path, text)]


def _check_pictures(cache: Cache, pictures: PictureSet) -> list[Problem]:
    """The pictures are those that the teachers saw, shard by shard, and large enough."""
    found: dict[str, Any] = {str(info.id): info.pictures for info in pictures.shards}
    wanted: dict[str, Any] = {
        str(ShardId(s["split"], s["number"])): s["pictures"]
        for s in cache.identity["pictures"]["shards"]
    }
    packed = pictures.geometry or (0, 0)
    if packed[0] < cache.geometry[0] or packed[1] < cache.geometry[1]:
        found["size"], wanted["size"] = list(packed), list(cache.geometry)
    if not (different := differences(found, wanted)):
        return []
    sides = "found {}, wanted {}".format(*both_sides(different, limit=2))
    what = f"the pictures of {pictures.path} are not those that the teachers saw ({sides})"
    return [Problem(kind="pictures", path=pictures.path, what=what)]


def _check_audit(cache: Cache) -> list[Problem]:
    """The audit, where there is one, can be read and is of this cache."""
    try:
        read_audit(cache)
    except (DamageError, OSError) as error:
        return [_unreadable("audit", cache.path / AUDIT_FILE, error)]
    return []


def _check_manifest(cache: Cache, missing: tuple[ShardId, ...]) -> list[Problem]:
    """Every shard is there, and manifest.json is what follows from them."""
    path, problems = cache.path / MANIFEST, []
    if missing:
        names = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        stale = f", though {MANIFEST} is there" if path.exists() else ""
        what = (
            f"{len(missing)} of {len(cache.shard_ids())} shards are missing ({names}){stale}:"
            f" stillroom cache RECIPE --run.cache {cache.path} goes on"
        )
        problems.append(Problem(kind="incomplete", path=cache.path, what=what))
    elif not path.exists():
        text = f"is missing, though all {len(cache.shard_ids())} shards are there"
        problems.append(_problem("incomplete", path, text))
    try:
        wanted = cache.manifest()
    except (StillroomError, OSError):
        return problems  # another problem says what is at fault
    if path.exists() and not (path.is_file() and path.read_bytes() == wanted):
        problems.append(_problem("manifest", path, "is not what follows from the shards"))
    return problems
