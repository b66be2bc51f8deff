"""A process that looks at a growing cache all the time and tells what no reader should ever see."""

import os
import time
from pathlib import Path

from stillroom.cache import Cache, find_caches, scrub_shard
from stillroom.errors import StillroomError

_PAUSE_S = 0.002


def observe(folder: Path, problems: Path, stop: Path) -> None:
    """Until `stop` exists, watch the newest folder of caches below `folder`.

    Whatever has a shard's final name is opened and every row read, once per inode; a manifest must
    have all its shards. Problems become lines of a file; at the end `stop` holds what was done.
    """
    seen: set[tuple[str, int]] = set()
    looks = rows = 0
    root, cache = folder, None
    with problems.open("a", buffering=1) as out:
        while not stop.exists():
            time.sleep(_PAUSE_S)
            looks += 1
            newest = max(folder.iterdir(), default=folder)
            try:
                if newest != root or cache is None:
                    root, cache = newest, _open(newest)
                if cache is not None:
                    rows += _look(cache, seen)
            except (StillroomError, OSError, AssertionError) as error:
                print(f"{root}: {error!r}", file=out)
    stop.write_text(f"{looks} {len(seen)} {rows}")


def _open(root: Path) -> Cache | None:
    """Return the cache in a folder once shards can be in it."""
    caches = find_caches(root)
    return caches[0] if caches and caches[0].is_fitted else None


def _look(cache: Cache, seen: set[tuple[str, int]]) -> int:
    """Read the shards that were not seen before; return the number of their rows."""
    rows = 0
    if (cache.path / "manifest.json").exists() and cache.missing():
        raise AssertionError(f"{cache.path}: a manifest, but shards are missing")
    names = {cache.shard_spec(shard).folder: shard for shard in cache.shard_ids()}
    with os.scandir(cache.path) as entries:
        found = {(entry.path, entry.inode()) for entry in entries if entry.name in names}
    for place in found - seen:
        seen.add(place)
        shard = names[Path(place[0]).name]
        if bad := scrub_shard(cache, shard):
            raise AssertionError(f"{place[0]}: {bad}")
        rows += cache.shard_rows(shard)
    return rows
