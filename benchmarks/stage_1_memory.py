"""Stage 1's peak memory does not depend on how many rows a shard has.

`python benchmarks/stage_1_memory.py` caches 128 pictures with a stand-in teacher of 256x64x64
features (2.1 MB a row in half precision), once in shards of 16 rows and once in one of 128, each in
a process of its own, and writes `benchmarks/results/stage_1_memory_cpu<cores>_<yyyymm>.json`. A
writer that kept a shard in memory would need 235 MB more for the second. About 40 seconds.
"""

import tempfile
from pathlib import Path

from bench.commands import Finished, call
from bench.machine import save
from bench.stand_ins import save_convolutions, write_pictures

from stillroom.cache import open_cache

RECIPES = Path(__file__).parent / "bench" / "recipes.py"
NUM_PICTURES, SIZE_PX, CHANNELS = 128, 64, 256
SHARD_ROWS = (16, NUM_PICTURES)
BATCH_ROWS = 2  # even the small shard must fill the queue of batches between teacher and disk


def main() -> None:
    figures: dict[str, object] = {"rows": NUM_PICTURES, "row_shape": [CHANNELS, SIZE_PX, SIZE_PX]}
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_pictures(folder / "pictures", NUM_PICTURES, SIZE_PX)
        network = save_convolutions(folder / "stand_in.onnx", ((16, 1), (CHANNELS, 1)))
        for rows in SHARD_ROWS:
            done, row_mb = _cache(folder / str(rows), source, network, rows)
            peaks[rows] = done.peak_mb
            figures[f"shards_of_{rows}_rows"] = {
                "peak_mb": round(done.peak_mb, 1),
                "largest_body_mb": round(row_mb * rows, 1),
                "seconds": round(done.seconds, 1),
            }
    few, many = (peaks[rows] for rows in SHARD_ROWS)
    figures["peak_ratio"] = round(many / few, 3)
    save("stage_1_memory", "python benchmarks/stage_1_memory.py", figures)


def _cache(folder: Path, source: str, network: Path, rows: int) -> tuple[Finished, float]:
    """Pack and cache in shards of so many rows; return the measured stage 1 and MB a row."""
    size = ["--size", SIZE_PX, SIZE_PX]
    options = ["--val-share", 0, *size, "--shard-rows", rows, "--format", "png", "--classes", 2]
    call("tools/make_shards.py", source, "--out", folder / "shards", *options)
    done = call(
        "tools/cache_teacher.py",
        f"{RECIPES}:inner_only",
        *("--data.shards", folder / "shards", "--run.cache", folder / "cache"),
        *("--teachers.0.path", network, "--batch", BATCH_ROWS, "--micro-batch", BATCH_ROWS),
    )
    (path,) = (folder / "cache").iterdir()
    assert open_cache(path).is_complete
    bodies = path.glob("*.zarr/inner.value/c/0/0/0/0")
    return done, sum(body.stat().st_size for body in bodies) / NUM_PICTURES / 1e6


if __name__ == "__main__":
    main()
