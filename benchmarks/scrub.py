"""How fast a cache is scrubbed, with how many threads, and what keeps threads from more.

`python benchmarks/scrub.py [--threads 1 2]` writes `results/scrub_<hardware>_<yyyymm>.json` here. 8
shards of 12 rows of 256x80x80 float16 ReLU features, warm files, every number of threads in turn,
best of `--rounds`. `held` is the share of one thread's processor time outside reading, sha256 and
zstd, which release the interpreter's lock: no number of threads can gain more than 1 / held.
"""

import argparse
import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from bench.machine import RESULTS, save

from stillroom.cache import Cache, claim_cache, frames, make_identity
from stillroom.cache import scrub as shard_scrub
from stillroom.checking.parallel_scrub import scrub_shards
from stillroom.types import Row, RowStatistics, View

SHARDS, ROWS, SHAPE = 8, 12, (256, 80, 80)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cores = sorted({1, 2, os.cpu_count() or 1})
    parser.add_argument("--threads", type=int, nargs="+", default=cores)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"row": list(SHAPE), "shards": SHARDS, "rows": SHARDS * ROWS}
    for body in ("zarr", "tar"):
        with tempfile.TemporaryDirectory() as folder:
            figures[body] = measure(make_cache(Path(folder), body), arguments)
    save("scrub", "python benchmarks/scrub.py", figures, arguments.out)


def make_cache(root: Path, body: str) -> Cache:
    shards = [{"split": "train", "number": i, "rows": ROWS, "pictures": ""} for i in range(SHARDS)]
    entry = {"teacher": {}, "shape": SHAPE, "stride": 8, "kind": "features", "codec": "float16"}
    views = {"class": "Views", "count": 1, "regions": False}
    pictures = {"digest": "", "shards": shards}
    identity = make_identity(pictures, (640, 640), views, {"feature": entry}, [], body)
    cache = claim_cache(root, "scrub", identity)
    cache.publish_fitted({})
    generator = np.random.default_rng(0)
    for shard_id in cache.shard_ids():
        with cache.writer(shard_id) as writer:
            for i in range(ROWS):
                value = generator.standard_normal(SHAPE, np.float32).clip(0).astype(np.float16)
                row = Row(key=f"{i:03d}", view=View(x0=0, y0=0, x1=640, y1=640))
                figures = RowStatistics(0.0, float(value.max()), 1.0, None)
                writer.append(row, {"feature.value": value}, {"feature": figures}, pixels=0)
            writer.publish({})
    return cache


def measure(cache: Cache, arguments: argparse.Namespace) -> dict[str, Any]:
    best: dict[int, float] = dict.fromkeys(arguments.threads, float("inf"))
    num_bytes = 0
    for _ in range(arguments.rounds):
        for threads in arguments.threads:
            began = time.perf_counter()
            problems, _, num_bytes = scrub(cache, threads)
            best[threads] = min(best[threads], time.perf_counter() - began)
            assert not problems
    speeds = {f"{n}_threads_mb_per_s": round(num_bytes / 1e6 / s, 1) for n, s in best.items()}
    return {"mb": round(num_bytes / 1e6, 1), **speeds, "held": round(held(cache), 3)}


def scrub(cache: Cache, threads: int) -> tuple[list, int, int]:
    with Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
        return scrub_shards(cache, cache.shard_ids(), cache.codecs_sha256, None, None, threads)


def held(cache: Cache) -> float:
    """The share of processor time, of one thread, in which no other thread can run Python."""
    released = [0.0]

    def timed(function: Callable) -> Callable:
        def call(*words: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*words)
            finally:
                released[0] += time.thread_time() - began

        return call

    with _patched(timed):
        began = time.process_time()
        scrub(cache, 1)
        return 1 - released[0] / (time.process_time() - began)


@contextlib.contextmanager
def _patched(timed: Callable) -> Iterator[None]:
    class Sha256:
        def __init__(self, data: bytes = b"") -> None:
            self._total = hashlib.new("sha256", data)
            self.update, self.hexdigest = timed(self._total.update), self._total.hexdigest

    with (
        mock.patch.object(os, "preadv", timed(os.preadv)),
        mock.patch.object(frames.zstd, "decompress", timed(frames.zstd.decompress)),
        mock.patch.object(shard_scrub.hashlib, "sha256", Sha256),
    ):
        yield


if __name__ == "__main__":
    main()
