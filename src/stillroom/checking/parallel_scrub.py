"""Scrubs the shards of a cache in threads, with progress, and compares them with their pictures.

Threads suffice: reading, sha256, crc32c and zstd release the GIL (speed: benchmarks/scrub.py).
Memory is one row and its frames per thread.
"""

import errno
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from stillroom.cache.folder import Cache
from stillroom.cache.reader import ShardReader
from stillroom.cache.scrub import Problem, Tick, problem_of, scrub_reader
from stillroom.cache.shard_index import ShardSpec
from stillroom.checking.leftovers import num_bytes
from stillroom.errors import DamageError, FailureError
from stillroom.pictures.dataset import PictureSet, PictureShard
from stillroom.progress_bar import progress_bar
from stillroom.signals import raise_if_stopped, stop_on_signals
from stillroom.types import Row, ShardId

_SHOWN = 3  # keys named in one line

RowsOf = Callable[[PictureShard], tuple[Row, ...]]


def scrub_shards(
    cache: Cache,
    shard_ids: Sequence[ShardId],
    codecs_sha256: str,
    pictures: PictureSet | None,
    rows_of: RowsOf | None,
    workers: int,
) -> tuple[list[Problem], int, int]:
    """Check published shards in full; return their problems in order, rows and bytes read.

    Where `pictures` are given, the keys must be theirs, and with `rows_of` the rows. Raises
    Stopped on SIGTERM or SIGUSR1, FailureError where a file cannot be read and may yet be good.
    """
    specs = [cache.shard_spec(shard_id, codecs_sha256) for shard_id in shard_ids]
    total, lock, counted = sum(spec.num_rows for spec in specs), threading.Lock(), 0
    with (
        stop_on_signals() as stop,
        progress_bar(total=total, unit="row", desc=cache.path.name) as bar,
        ThreadPoolExecutor(workers, thread_name_prefix="scrub") as pool,
    ):

        def tick(_: int, num_rows: int) -> None:
            nonlocal counted
            raise_if_stopped(stop, "the check is not finished")
            with lock:
                counted += num_rows
                bar.update(num_rows)

        try:
            found = list(
                pool.map(lambda spec: _problems(cache, spec, pictures, rows_of, tick), specs)
            )
        except BaseException:
            stop.set()
            raise
    size = sum(num_bytes(cache.path / spec.folder) for spec in specs)
    return [problem for problems in found for problem in problems], counted, size


def _problems(
    cache: Cache,
    spec: ShardSpec,
    pictures: PictureSet | None,
    rows_of: RowsOf | None,
    tick: Tick,
) -> list[Problem]:
    folder, shard_id = cache.path / spec.folder, spec.shard_id
    try:
        cache.shards.fetch_again(folder.name)
        with ShardReader(folder, spec) as reader:
            return [
                *scrub_reader(reader, folder, spec, tick=tick),
                *_row_problems(pictures, rows_of, tuple(reader.rows), spec, folder),
            ]
    except DamageError as error:
        return [problem_of(error, shard_id, folder)]
    except OSError as error:
        if error.errno == errno.EIO:  # a bad sector
            what = f"shard {shard_id}: {folder} cannot be read: {error}"
            return [Problem(shard=shard_id, path=folder, what=what)]
        raise FailureError(
            f"shard {shard_id} in {folder} could not be checked",
            found=error,
            fix="see to permissions and to the disk; nothing is known to be damaged",
        ) from error


def _row_problems(
    pictures: PictureSet | None,
    rows_of: RowsOf | None,
    rows: Sequence[Row],
    spec: ShardSpec,
    folder: Path,
) -> list[Problem]:
    """The rows are those of the picture shard, or at least the keys, where that is at hand."""
    shard_id = spec.shard_id
    if pictures is None or shard_id not in pictures.shard_ids():
        return []
    try:
        opened = pictures.open(shard_id)
        if rows_of is None:
            found = {row.key for row in rows}
            missing = set(opened.keys) - found if rows[0].region is None else set()
            odd = missing | (found - set(opened.keys))  # not every picture has a region
        else:
            odd = {row.key for row in set(rows_of(opened)) ^ set(rows)}
    except DamageError as error:
        return [replace(problem_of(error, shard_id, pictures.path), kind="pictures")]
    if not odd:
        return []
    keys = sorted(odd)
    some = ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if keys[_SHOWN:] else "")
    what = f"shard {shard_id}: the rows of {some} are not those of the pictures (keys and views)"
    return [Problem(shard=shard_id, path=folder, what=what)]
