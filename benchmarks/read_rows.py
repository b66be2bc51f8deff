"""How fast one row comes back, checked: both bodies against zarr-python and np.load, in one run.

`python benchmarks/read_rows.py [--rows 24]` writes
`benchmarks/results/read_rows_<hardware>_<yyyymm>.json`. A row is 1024x80x80 float16 (13.1 MB), once
as noise (zstd finds little in it) and once as ReLU features with many equal values. Files are warm,
one thread reads, each reader in turn on each row. Ratios are of the best times, since other work
may share the machine; medians stand beside them. The share of checking is of processor time, the
median over all reads of checked less unchecked of the same row, one right after the other.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import google_crc32c
import numpy as np
import zarr
from bench.machine import save

from stillroom.cache import Cache, claim_cache, make_identity
from stillroom.cache.folder import BODIES
from stillroom.types import Row, RowStatistics, ShardId, View

SHARD, PART = ShardId("train", 0), "detector.value"
SHAPE = (1024, 80, 80)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=24, help="rows in the shard")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    arguments = parser.parse_args()
    results: dict[str, object] = {}
    for content in ("noise", "relu"):
        with tempfile.TemporaryDirectory() as folder:
            results[content] = measure(Path(folder), content, arguments.rows)
    figures = {"row": list(SHAPE), "rows": arguments.rows, "crc32c": google_crc32c.implementation}
    command = f"python benchmarks/read_rows.py --rows {arguments.rows}"
    save("read_rows", command, figures | results, arguments.out)


def measure(folder: Path, content: str, num_rows: int) -> dict[str, float]:
    """Write a shard of each body and read every row in each way; best ms, and ratios."""
    caches = {body: new_cache(folder, num_rows, body) for body in BODIES}
    for i, value in enumerate(rows(content, num_rows)):
        np.save(folder / f"{i}.npy", value)
    written = {body: write(cache, content, num_rows) for body, cache in caches.items()}
    seconds, busy = read_in_turns(readers(caches, folder), num_rows)
    best = {name: min(values) for name, values in seconds.items()}
    result = {f"{name}_ms": round(1e3 * value, 2) for name, value in best.items()}
    for name, values in seconds.items():
        result[f"{name}_median_ms"] = round(1e3 * statistics.median(values), 2)
    for body, cache in caches.items():
        checked = best[f"{body}_body"]
        result[f"{body}_body_check_share"] = check_share(busy, f"{body}_body")
        result[f"zarr_over_{body}_body"] = round(best["zarr"] / checked, 2)
        result[f"np_load_over_{body}_body"] = round(best["np_load"] / checked, 2)
        result[f"{body}_body_mb_row"] = round(cache.shard_bytes(SHARD) / num_rows / 1e6, 2)
        append, publish = written[body]
        result[f"{body}_body_append_ms"] = round(1e3 * append / num_rows, 1)
        result[f"{body}_body_publish_ms_row"] = round(1e3 * publish / num_rows, 1)
    return result


def write(cache: Cache, content: str, num_rows: int) -> tuple[float, float]:
    """Write a shard of rows; return the seconds of appending and of publishing."""
    written = 0.0
    with cache.writer(SHARD) as writer:
        for i, value in enumerate(rows(content, num_rows)):
            row = Row(key=f"{i:06d}", view=View(x0=0, y0=0, x1=640, y1=640))
            began = time.perf_counter()
            writer.append(
                row, {PART: value}, {"detector": RowStatistics(-6.0, 6.0, 1.0, None)}, pixels=0
            )
            written += time.perf_counter() - began
        began = time.perf_counter()
        assert writer.publish({})
    return written, time.perf_counter() - began


def new_cache(folder: Path, num_rows: int, body: str) -> Cache:
    """A cache of one shard of one target."""
    shards = [{"split": "train", "number": 0, "rows": num_rows, "pictures": "0" * 64}]
    target = {"teacher": {"class": "Benchmark"}, "shape": SHAPE, "stride": 8, "kind": "features"}
    identity = make_identity(
        pictures={"digest": "0" * 64, "shards": shards},
        geometry=(640, 640),
        views={"class": "Views", "count": 1, "regions": False},
        targets={"detector": target | {"codec": "float16"}},
        calibration=[],
        body=body,
    )
    cache = claim_cache(folder, "read-rows", identity)
    cache.publish_fitted({})
    return cache


def rows(content: str, num_rows: int) -> Iterator[np.ndarray]:
    """Float16 rows that compress little (noise) or well (half of the values are zero)."""
    generator = np.random.default_rng(1)
    for _ in range(num_rows):
        value = generator.standard_normal(SHAPE, np.float32)
        yield (np.maximum(value, 0) if content == "relu" else value).astype(np.float16)


def readers(caches: dict[str, Cache], folder: Path) -> dict[str, Callable[[int], object]]:
    """Every way to get row i as an array; `<body>_body` is our reader over that body."""
    array = zarr.open_group(caches["zarr"].path / f"{SHARD}.zarr", mode="r")[PART]
    assert isinstance(array, zarr.Array)
    out = {PART: np.empty(SHAPE, np.float16)}
    ways: dict[str, Callable[[int], object]] = {}
    for body, cache in caches.items():
        checked, unchecked = cache.reader(SHARD), cache.reader(SHARD, check=False)
        ways[f"{body}_body"] = partial(checked.read, out=out)
        ways[f"{body}_body_unchecked"] = partial(unchecked.read, out=out)
        ways[f"{body}_body_new_array"] = checked.read
    ways["zarr"] = lambda i: array[i]
    ways["np_load"] = lambda i: np.load(folder / f"{i}.npy")
    return ways


def read_in_turns(
    ways: dict[str, Callable[[int], object]], num_rows: int, rounds: int = 3
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and processor seconds of every read; the ways take turns on each row, the first round
    warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for i in range(num_rows):
            for name, read in ways.items():
                began, began_busy = time.perf_counter(), time.thread_time()
                read(i)
                if turn:
                    busy[name].append(time.thread_time() - began_busy)
                    seconds[name].append(time.perf_counter() - began)
    return seconds, busy


def check_share(busy: dict[str, list[float]], way: str) -> float:
    """Median of (checked - unchecked) / checked over pairs of reads of one row."""
    pairs = zip(busy[way], busy[f"{way}_unchecked"], strict=True)
    return round(statistics.median((with_it - without) / with_it for with_it, without in pairs), 4)


if __name__ == "__main__":
    main()
