"""Rows a second of one core at random, cold and warm: our reader, decoding alone, and others.

`python benchmarks/loader.py` writes `benchmarks/results/loader_<hardware>_<yyyymm>.json` (2 min).
A row is 128 x E/8 x E/8 features of 2.8 bits a value and 1 x E x E smooth logits, a byte a value,
for pictures of E = 256 and 640 px; pictures are not read. All keep the same rows in eight shards,
zstd 1 but for webdataset, and are compared with them once. Then they take turns, each opened
afresh: cold (no file in the page cache, no unpacked copy), then warm. The process may use one core.

`decoding` is zstd from memory into new arrays: the limit. Ours (two bodies) and both of zarr check
a crc32c of all that they read, MosaicML Streaming a hash of each shard that it unpacks, litdata and
webdataset nothing. These two are streams, in the random order that they make themselves (of
webdataset shards and a window of 64). MosaicML Streaming and litdata unpack whole shards and read
the copies when warm. Ratios are of rows a processor second, medians over the
turns. What is not installed is left out: `pip install zarrs mosaicml-streaming litdata`.
"""

import argparse
import gc
import importlib.util
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from bench.machine import RESULTS, save
from webdataset.compat import WebDataset
from webdataset.writer import ShardWriter

from stillroom.cache import Cache, claim_cache, find_caches, make_identity
from stillroom.cache.frames import crc32c, decode_frame, sync_file
from stillroom.types import Row, RowStatistics, ShardId, View

SHARDS = 8
FEATURES, LOGITS = "detector.impulse", "person.impulse"
MODULES = {"zarrs": "zarrs", "mosaicml_streaming": "streaming", "litdata": "litdata"}
Arrays = dict[str, np.ndarray]
Read = Callable[[int], Any]  # the arrays of a row, by their names


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=128, help="of 640 px; 256 px have four times")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    figures = {}
    for edge, num_rows in ((256, 4 * arguments.rows), (640, arguments.rows)):
        with tempfile.TemporaryDirectory() as folder:
            values = list(rows(edge, num_rows))
            figures[f"{edge}_px"] = measure(Path(folder), values, arguments.turns)
    command = f"python benchmarks/loader.py --rows {arguments.rows} --turns {arguments.turns}"
    save("loader", command, figures, arguments.out)


def measure(root: Path, values: list[Arrays], turns: int) -> dict[str, Any]:
    """Write the rows in every format, check them, and read them in turns."""
    found = {name: is_installed(name) for name in OPENERS}
    figures: dict[str, Any] = {name: "not installed" for name in OPENERS if not found[name]}
    stored = {name: write for name, write in WRITERS.items() if found.get(name, True)}
    for name, write in stored.items():
        write(root / name, values)
    openers = {name: opener for name, opener in OPENERS.items() if found[name]}
    for name, opener in openers.items():
        read = opener(root)
        found_rows = {row_crc32c(read(i)) for i in range(len(values))}
        assert found_rows == {row_crc32c(value) for value in values}, f"{name} has other rows"
    rates: dict[str, list[dict[str, float]]] = {name: [] for name in openers}
    for turn in range(turns):
        order = np.random.default_rng(turn).permutation(len(values)).tolist()
        for name, opener in openers.items():
            gc.collect()  # what the last one held
            forget(root)
            read = opener(root)
            rates[name].append(pass_over(read, order, "cold") | pass_over(read, order, "warm"))
    for name, found_rates in rates.items():
        names = found_rates[0]
        figures[name] = {n: round(statistics.median(r[n] for r in found_rates)) for n in names}
    for name in stored:
        size = sum(path.stat().st_size for path in files(root / name))
        figures[f"{name}_kb_row"] = round(size / len(values) / 1e3)
    return figures | {"stillroom_over": {name: over(figures, name) for name in openers}}


def over(figures: dict[str, Any], other: str) -> dict[str, float]:
    """How many times the rows of another one of ours are, per processor second."""
    pairs = {when: f"{when}_rows_per_core_s" for when in ("cold", "warm")}
    return {w: round(figures["stillroom"][n] / figures[other][n], 2) for w, n in pairs.items()}


def pass_over(read: Read, order: list[int], when: str) -> dict[str, float]:
    began, busy = time.perf_counter(), time.process_time()
    for i in order:
        read(i)
    busy, took = time.process_time() - busy, time.perf_counter() - began
    return {f"{when}_rows_per_s": len(order) / took, f"{when}_rows_per_core_s": len(order) / busy}


def rows(edge: int, count: int) -> Iterator[Arrays]:
    """Made-up targets of so many pictures."""
    generator = np.random.default_rng(0)
    across = np.linspace(0, 4 * np.pi, edge, dtype=np.float32)
    for _ in range(count):
        features = generator.standard_normal((128, edge // 8, edge // 8), np.float32) * 1.685
        x, y = (np.sin(across * generator.uniform(0.5, 2) + generator.uniform(0, 6)) for _ in "xy")
        logits = 60 * (y[None, :, None] + x)
        yield {
            FEATURES: np.rint(features + 64).astype(np.uint8),
            LOGITS: np.rint(logits + 128).astype(np.uint8),
        }


def row_crc32c(arrays: Arrays) -> int:
    return crc32c(np.array(arrays[LOGITS]), crc32c(np.array(arrays[FEATURES])))


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(MODULES.get(name, "stillroom")) is not None


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def forget(root: Path) -> None:
    """Take every file out of the page cache."""
    for path in files(root):
        sync_file(path)


def write_cache(body: str, folder: Path, values: list[Arrays]) -> None:
    each = len(values) // SHARDS
    shards = [
        {"split": "train", "number": i, "rows": each, "pictures": "0" * 64} for i in range(SHARDS)
    ]
    said = {
        "teacher": {"class": "Benchmark"},
        "stride": 8,
        "kind": "features",
        "codec": "stochastic:1",
    }
    targets = {n.partition(".")[0]: said | {"shape": v.shape} for n, v in values[0].items()}
    identity = make_identity(
        pictures={"digest": "0" * 64, "shards": shards},
        geometry=values[0][LOGITS].shape[1:],
        views={"class": "Views", "count": 1, "regions": False},
        targets=targets,
        calibration=[],
        body=body,
    )
    cache = claim_cache(folder, "loader", identity)
    cache.publish_fitted({})
    figures = dict.fromkeys(targets, RowStatistics(0.0, 255.0, 1.0, None))
    for shard in cache.shard_ids():
        with cache.writer(shard) as writer:
            for i in range(each * shard.number, each * (shard.number + 1)):
                row = Row(key=f"{i:06d}", view=View(x0=0, y0=0, x1=8, y1=8))
                writer.append(row, values[i], figures, pixels=0)
            assert writer.publish({})


def opened_cache(root: Path, body: str = "zarr") -> Cache:
    return find_caches(root / f"stillroom_{body}")[0]


def open_ours(root: Path, body: str = "zarr", *, check: bool = True) -> Read:
    cache = opened_cache(root, body)
    readers = [cache.reader(shard, check=check) for shard in cache.shard_ids()]
    return lambda i: readers[i // len(readers[0])].read(i % len(readers[0]))


def open_decoding(root: Path) -> Read:
    """Frames in memory, decoded into new arrays."""
    cache, frames = opened_cache(root), []
    for shard in cache.shard_ids():
        spans, folder = cache.reader(shard).shard_index.spans, cache.path / f"{shard}.zarr"
        data = {p: np.fromfile(folder / cache.body.file_of(p), np.uint8) for p in cache.parts}
        places = {p: zip(spans[p.name].offset, spans[p.name].size, strict=True) for p in data}
        found = {p: [data[p][o : o + s].copy() for o, s in places[p]] for p in data}
        frames += [{p: found[p][i] for p in found} for i in range(cache.shard_rows(shard))]

    def read(i: int) -> Arrays:
        values = {part: np.empty(part.shape, part.stored) for part in frames[i]}
        for part, value in values.items():
            decode_frame(frames[i][part], value)
        return {part.name: value for part, value in values.items()}

    return read


def open_zarr(root: Path, pipeline: str = "zarr.core.codec_pipeline.BatchedCodecPipeline") -> Read:
    cache = opened_cache(root)
    with zarr.config.set({"codec_pipeline.path": pipeline, "threading.max_workers": 1}):
        groups = [zarr.open_group(cache.path / f"{s}.zarr", mode="r") for s in cache.shard_ids()]
        arrays: list[dict[str, Any]] = [{p.name: g[p.name] for p in cache.parts} for g in groups]
    each = cache.shard_rows(ShardId("train", 0))
    return lambda i: {name: array[i % each] for name, array in arrays[i // each].items()}


def write_webdataset(folder: Path, values: list[Arrays]) -> None:
    folder.mkdir()
    each = len(values) // SHARDS
    with ShardWriter(str(folder / "%06d.tar"), maxcount=each, verbose=0) as writer:
        for i, value in enumerate(values):
            writer.write({"__key__": f"{i:06d}"} | {f"{n}.npy": v for n, v in value.items()})


def open_webdataset(root: Path) -> Read:
    paths = [str(path) for path in sorted(files(root / "webdataset"))]
    read = stream(WebDataset(paths, shardshuffle=len(paths)).shuffle(64).decode())
    return lambda i: {name.removesuffix(".npy"): value for name, value in read(i).items()}


def stream(dataset: Any) -> Read:
    """Rows in the order in which a stream gives them, one epoch after another."""
    epochs = (row for _ in itertools.count() for row in dataset)
    return lambda _: next(epochs)


def write_mosaicml(folder: Path, values: list[Arrays]) -> None:
    module = importlib.import_module("streaming")
    kinds = {n: f"ndarray:uint8:{','.join(map(str, v.shape))}" for n, v in values[0].items()}
    size = len(values) // SHARDS * sum(value.nbytes for value in values[0].values())
    how = {"compression": "zstd:1", "hashes": ["xxh64"], "size_limit": size + (1 << 16)}
    with module.MDSWriter(out=str(folder), columns=kinds, **how) as writer:
        for value in values:
            writer.write(value)


def open_mosaicml(root: Path) -> Read:
    module = importlib.import_module("streaming")
    for copy in (root / "mosaicml_streaming").glob("*.mds"):
        copy.unlink()
    module.base.util.clean_stale_shared_memory()
    local = str(root / "mosaicml_streaming")
    how = {"validate_hash": "xxh64", "keep_zip": True, "batch_size": 1}
    return module.StreamingDataset(local=local, shuffle=False, **how).__getitem__


def write_litdata(folder: Path, values: list[Arrays]) -> None:
    folder.mkdir()
    writer = importlib.import_module("litdata.streaming").Cache(
        str(folder), compression="zstd", chunk_size=len(values) // SHARDS
    )
    for i, value in enumerate(values):
        writer[i] = value
    writer.done()
    writer.merge(1)


def open_litdata(root: Path) -> Read:
    shutil.rmtree(root / "unpacked", ignore_errors=True)
    module = importlib.import_module("litdata")
    how = {"cache_dir": str(root / "unpacked"), "shuffle": True}
    return stream(module.StreamingDataset(str(root / "litdata"), **how))


WRITERS: dict[str, Callable[[Path, list[Arrays]], None]] = {
    "stillroom_zarr": partial(write_cache, "zarr"),
    "stillroom_tar": partial(write_cache, "tar"),
    "webdataset": write_webdataset,
    "mosaicml_streaming": write_mosaicml,
    "litdata": write_litdata,
}
OPENERS: dict[str, Callable[[Path], Read]] = {
    "decoding": open_decoding,
    "stillroom": open_ours,
    "stillroom_unchecked": partial(open_ours, check=False),
    "stillroom_tar": partial(open_ours, body="tar"),
    "zarr_python": open_zarr,
    "zarrs": partial(open_zarr, pipeline="zarrs.ZarrsCodecPipeline"),
    "webdataset": open_webdataset,
    "mosaicml_streaming": open_mosaicml,
    "litdata": open_litdata,
}

if __name__ == "__main__":
    main()
