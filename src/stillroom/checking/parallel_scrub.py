"""Scrubs the shards of a cache in threads, with progress, and compares them with their pictures.

Threads suffice: reading, sha256, crc32c and zstd release the GIL (speed: benchmarks/scrub.py).
Memory is one row and its frames per thread.
"""

import errno
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from stillroom.cache.folder import Cache
from stillroom.cache.reader import ShardReader
from stillroom.cache.scrub import Problem, Tick, problem_of, scrub_reader
from stillroom.cache.shard_index import ShardSpec
from stillroom.checking.leftovers import num_bytes
from stillroom.errors import DamageError, FailureError
from stillroom.pictures.dataset import PictureSet
from stillroom.signals import raise_if_stopped, stop_on_signals
from stillroom.types import Row, ShardId, View

_SHOWN = 3  # keys named in one line


def scrub_shards(
    cache: Cache,
    shard_ids: Sequence[ShardId],
    codecs_sha256: str,
    pictures: PictureSet | None,
    workers: int,
) -> tuple[list[Problem], int, int]:
    """Check published shards in full; return their problems in order, rows and bytes read.

    Where `pictures` are given, the rows must be those of the pictures' index. Raises
    Stopped on SIGTERM or SIGUSR1, FailureError where a file cannot be read and may yet be good.
    """
    specs = [cache.shard_spec(shard_id, codecs_sha256) for shard_id in shard_ids]
    total, lock, counted = sum(spec.num_rows for spec in specs), threading.Lock(), 0
    with (
        stop_on_signals() as stop,
        tqdm(total=total, unit="row", desc=cache.path.name) as bar,
        ThreadPoolExecutor(workers, thread_name_prefix="scrub") as pool,
    ):

        def tick(_: int, num_rows: int) -> None:
            nonlocal counted
            raise_if_stopped(stop, "the check is not finished")
            with lock:
                counted += num_rows
                bar.update(num_rows)

        try:
            found = list(pool.map(lambda spec: _problems(cache, spec, pictures, tick), specs))
        except BaseException:
            stop.set()
            raise
    size = sum(num_bytes(cache.path / spec.folder) for spec in specs)
    return [problem for problems in found for problem in problems], counted, size


def _problems(
    cache: Cache, spec: ShardSpec, pictures: PictureSet | None, tick: Tick
) -> list[Problem]:
    folder, shard_id = cache.path / spec.folder, spec.shard_id
    try:
        with ShardReader(folder, spec) as reader:
            return [
                *scrub_reader(reader, folder, spec, tick=tick),
                *_row_problems(cache, pictures, reader.rows, spec, folder),
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
    cache: Cache, pictures: PictureSet | None, rows: Sequence[Row], spec: ShardSpec, folder: Path
) -> list[Problem]:
    """The rows are those of the picture shard, where that is at hand: its keys, whole pictures."""
    shard_id, (height, width) = spec.shard_id, cache.geometry
    if pictures is None or shard_id not in pictures.shard_ids():
        return []
    try:
        keys = pictures.open(shard_id).keys
    except DamageError as error:
        return [replace(problem_of(error, shard_id, pictures.path), kind="pictures")]
    view = View(x0=0, y0=0, x1=width, y1=height)
    odd = sorted({row.key for row in {Row(key=key, view=view) for key in keys} ^ set(rows)})
    if not odd:
        return []
    some = ", ".join(odd[:_SHOWN]) + (f" and {len(odd) - _SHOWN} more" if odd[_SHOWN:] else "")
    what = f"shard {shard_id}: the rows of {some} are not those of the pictures (keys and views)"
    return [Problem(shard=shard_id, path=folder, what=what)]
