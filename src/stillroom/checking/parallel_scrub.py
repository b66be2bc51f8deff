"""Scrubs the shards of a cache in threads, with progress, and compares them with their pictures.

Threads suffice: reading, sha256, crc32c and zstd release the GIL (speed: benchmarks/scrub.py).
Memory is one row and its frames per thread.
"""

import errno
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stillroom.cache.folder import Cache
from stillroom.cache.reader import ShardReader
from stillroom.cache.scrub import Problem, Tick, problem_of, scrub_reader
from stillroom.cache.shard_index import ShardSpec
from stillroom.checking.leftovers import num_bytes
from stillroom.errors import DamageError, FailureError, Stopped
from stillroom.pictures.dataset import PictureSet
from stillroom.signals import stop_on_signals
from stillroom.types import Row, ShardId, View

_BAD_SECTOR = {errno.EIO, getattr(errno, "EUCLEAN", errno.EIO), errno.EBADMSG}
_SHOWN = 3  # keys named in one line


def scrub_shards(
    cache: Cache,
    shard_ids: Sequence[ShardId],
    codecs_sha256: str,
    pictures: PictureSet | None,
    workers: int,
) -> tuple[list[Problem], int, int]:
    """Check published shards in full; return their problems in order, rows and bytes read.

    Where `pictures` are given, the recorded keys must be those of the pictures' index. Raises
    Stopped on SIGTERM or SIGUSR1, FailureError where a file cannot be read and may yet be good.
    """
    specs_of_shards = [cache.shard_spec(shard_id, codecs_sha256) for shard_id in shard_ids]
    sizes = [num_bytes(cache.path / spec.folder) for spec in specs_of_shards]
    found: dict[ShardId, list[Problem]] = {}
    with (
        stop_on_signals() as stop,
        tqdm(total=sum(sizes), unit="B", unit_scale=True, desc=cache.path.name) as bar,
        ThreadPoolExecutor(workers, thread_name_prefix="scrub") as pool,
    ):
        progress = _Progress(bar, stop)
        try:
            futures = [
                pool.submit(_scrub, cache, spec, size, pictures, progress)
                for spec, size in zip(specs_of_shards, sizes, strict=True)
            ]
            for future in as_completed(futures):
                shard_id, problems = future.result()
                found[shard_id] = problems
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    problems = [problem for shard_id in shard_ids for problem in found[shard_id]]
    return problems, progress.num_rows, sum(sizes)


class _Progress:
    """A bar that threads share; telling it something raises Stopped once the event is set."""

    def __init__(self, bar: Any, stop: threading.Event) -> None:
        self.num_rows = 0
        self._bar, self._stop, self._lock = bar, stop, threading.Lock()

    def add(self, num_bytes: int, num_rows: int) -> None:
        if self._stop.is_set():
            raise Stopped("told to stop", found="the check is not finished")
        with self._lock:
            self.num_rows += num_rows
            self._bar.set_postfix_str(f"{self.num_rows} rows", refresh=False)
            self._bar.update(num_bytes)


def _scrub(
    cache: Cache, spec: ShardSpec, size: int, pictures: PictureSet | None, progress: _Progress
) -> tuple[ShardId, list[Problem]]:
    done = 0

    def tick(num_bytes: int, num_rows: int) -> None:
        nonlocal done
        done += num_bytes
        progress.add(num_bytes, num_rows)

    problems = _problems(cache, spec, pictures, tick)
    progress.add(size - done, 0)
    return spec.shard_id, problems


def _problems(
    cache: Cache, spec: ShardSpec, pictures: PictureSet | None, tick: Tick
) -> list[Problem]:
    folder, shard_id = cache.path / spec.folder, spec.shard_id
    try:
        with ShardReader(folder, spec) as reader:
            return [
                *scrub_reader(reader, folder, spec, tick=tick),
                *_view_problems(cache, reader.rows, shard_id, folder),
                *_key_problems(pictures, reader.rows, shard_id, folder),
            ]
    except DamageError as error:
        return [problem_of(error, shard_id, folder)]
    except OSError as error:
        if error.errno in _BAD_SECTOR:
            what = f"shard {shard_id}: {folder} cannot be read: {error}"
            return [Problem(shard=shard_id, path=folder, what=what)]
        raise FailureError(
            f"shard {shard_id} in {folder} could not be checked",
            found=error,
            fix="see to permissions and to the disk; nothing is known to be damaged",
        ) from error


def _view_problems(
    cache: Cache, rows: Sequence[Row], shard_id: ShardId, folder: Path
) -> list[Problem]:
    """Every view of the kind `whole` is the whole picture."""
    height, width = cache.geometry
    whole = View(x0=0, y0=0, x1=width, y1=height)
    odd = [row.key for row in rows if row.region is None and row.view != whole]
    if not odd:
        return []
    what = f"shard {shard_id}: the view of {_some(odd)} is not the whole picture"
    return [Problem(shard=shard_id, path=folder, what=what)]


def _key_problems(
    pictures: PictureSet | None, rows: Sequence[Row], shard_id: ShardId, folder: Path
) -> list[Problem]:
    """The keys are those of the picture shard, where that is at hand."""
    if pictures is None or shard_id not in pictures.shard_ids():
        return []
    try:
        wanted = set(pictures.open(shard_id).keys)
    except DamageError as error:
        problem = problem_of(error, shard_id, pictures.path)
        return [Problem(kind="pictures", shard=shard_id, path=pictures.path, what=problem.what)]
    found = {row.key for row in rows}
    pairs = (("foreign keys", found - wanted), ("no row of keys", wanted - found))
    return [
        Problem(shard=shard_id, path=folder, what=f"shard {shard_id}: {text} {_some(sorted(keys))}")
        for text, keys in pairs
        if keys
    ]


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
