"""What views cost a student: a row with and without, read plainly and from a cache, in one run.

`python benchmarks/draw_views.py [--source voc:PATH]` writes
`benchmarks/results/draw_views_<hardware>_<yyyymm>.json`. Pictures (128 synthetic ones where none
are named) are letterboxed to 256 x 256 as JPEG; a stand-in teacher says 16x64x64 features (131 KB a
row in half precision) of one and of four views of each. One thread on one core reads whole
micro-batches of eight; the four ways take turns, step by step, and medians are kept. Ratios are
within this run, since other work may share the machine.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.commands import call
from bench.machine import save
from bench.stand_ins import save_convolutions, write_pictures

from stillroom.cache import Cache, find_caches
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.pictures.pixels import pixels_crc32c
from stillroom.pictures.rows import picture_of, row_at
from stillroom.pictures.views import Views
from stillroom.recipe import Augment
from stillroom.training.order import MicroBatchSchedule, Order
from stillroom.training.stream import RowDataset, StoredBatch, training_batches

RECIPES = Path(__file__).parent / "bench" / "recipes.py"
NUM_PICTURES, SIZE_PX, BATCH, STEPS = 128, 256, 8, 160
FOUR = Views(count=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", help="as tools/make_shards.py takes it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = arguments.source or write_pictures(folder / "pictures", NUM_PICTURES, SIZE_PX)
        size = ["--size", SIZE_PX, SIZE_PX, "--fit", "letterbox"]
        call("tools/make_shards.py", source, "--out", folder / "shards", *size)
        network = save_convolutions(folder / "teacher.onnx", ((16, 2), (16, 2)))
        caches = {count: _cache(folder, network, count) for count in (1, 4)}
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        pictures = open_pictures(folder / "shards")
        figures = {"pictures": len(caches[1]), **_parts(pictures), **_streams(pictures, caches)}
    given = f" --source {arguments.source.partition(':')[0]}:PATH" if arguments.source else ""
    save("draw_views", f"python benchmarks/draw_views.py{given}", figures)


def _cache(folder: Path, network: Path, count: int) -> Cache:
    root = folder / f"cache-{count}"
    call(
        "tools/cache_teacher.py",
        f"{RECIPES}:inner_only",
        *("--data.shards", folder / "shards", "--run.cache", root, "--views.count", count),
        *("--teachers.0.path", network, "--batch", BATCH, "--micro-batch", BATCH),
    )
    return find_caches(root)[0]


def _parts(pictures: PictureSet) -> dict[str, float]:
    """Milliseconds of each part of a row: median over the pictures of the first shard."""
    times: dict[str, list[float]] = {"decode": [], "draw": [], "sample": [], "digest": []}
    shard = pictures.open(pictures.shard_ids("train")[0])
    for i in range(len(shard)):
        began = time.perf_counter()
        picture = shard.read(i)
        decoded = time.perf_counter()
        row = row_at(shard, i, None, FOUR, i + 1)
        drawn = time.perf_counter()
        seen = picture_of(picture, row, (SIZE_PX, SIZE_PX))
        sampled = time.perf_counter()
        pixels_crc32c(seen)
        moments = (began, decoded, drawn, sampled, time.perf_counter())
        for name, start, end in zip(times, moments, moments[1:], strict=False):
            times[name].append(1e3 * (end - start))
    return {f"{name}_ms": round(statistics.median(values), 4) for name, values in times.items()}


def _streams(pictures: PictureSet, caches: dict[int, Cache]) -> dict[str, float]:
    """Rows a second of stage 2's stream in each way, and the ratios with and without views."""
    ways = {
        "plain": RowDataset(pictures, "train"),
        "plain_views": RowDataset(pictures, "train", views=FOUR),
        "cached": RowDataset(pictures, "train", cache=caches[1], targets=("inner",)),
        "cached_views": RowDataset(
            pictures, "train", cache=caches[4], targets=("inner",), views=FOUR
        ),
    }
    streams = {name: _batches(dataset) for name, dataset in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(STEPS):
        for name, stream in streams.items():
            began = time.perf_counter()
            next(stream)
            if step >= STEPS // 8:
                seconds[name].append(time.perf_counter() - began)
    rate = {name: BATCH / statistics.median(values) for name, values in seconds.items()}
    found = {f"{name}_rows_per_s": round(value, 1) for name, value in rate.items()}
    found["plain_ratio"] = round(rate["plain_views"] / rate["plain"], 3)
    found["cached_ratio"] = round(rate["cached_views"] / rate["cached"], 3)
    return found


def _batches(dataset: RowDataset) -> Iterator[StoredBatch]:
    """Micro-batches, each read when it is asked for: read ahead, the ways would share the core."""
    order = Order(rows=len(dataset), seed=0)
    schedule = MicroBatchSchedule(batch=BATCH, micro_batch=BATCH, rank=0, world=1)
    for step in range(STEPS):
        yield next(
            training_batches(
                dataset,
                order,
                schedule,
                range(step, step + 1),
                augment=Augment(),
                seed=0,
                workers=1,
                pin=False,
            )
        )


if __name__ == "__main__":
    main()
