"""Rows/s of stage 2's reading from an S3 server, cold and warm, against the local disk, and the
bytes that are fetched in an epoch with a window of shards and without.

`python benchmarks/remote.py` writes `benchmarks/results/remote_<hardware>_<yyyymm>.json` in about a
minute. The server is moto's, one Python process on this machine, which shares its cores: what it
cannot do is no limit of ours, so ratios and bytes count here. The epochs of bytes may keep a
three eighths of all shards, and a window is an eighth of them.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from bench.machine import save
from PIL import Image

from stillroom.cache import Cache, claim_cache, find_caches, make_identity
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.pictures.decode import encode_picture
from stillroom.pictures.pack import pack
from stillroom.pictures.pixels import pixels_crc32c
from stillroom.pictures.prepare import Geometry, Prepared
from stillroom.pictures.rows import whole_row
from stillroom.pictures.synthetic import draw_shapes
from stillroom.recipe import Augment
from stillroom.remote.mirror import place_of
from stillroom.remote.store import Store
from stillroom.training.order import MicroBatchSchedule, Order, RowOrder, WindowOrder
from stillroom.training.prefetch import Prefetch
from stillroom.training.stream import RowDataset, training_batches
from stillroom.types import RowStatistics

SHARDS, ROWS, EDGE, SHAPE, BATCH = 32, 16, 128, (16, 32, 32), 8
WINDOW, KEPT, EPOCHS = SHARDS // 8, 0.375, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = make_pictures(folder / "shards")
        cache = make_cache(folder / "cache", pictures)
        server = serve()
        try:
            url = upload(folder)
            figures = measure(folder, url, pictures, cache)
        finally:
            server.kill()
    save("remote", "python benchmarks/remote.py", figures, arguments.out)


def measure(folder: Path, url: str, pictures: PictureSet, cache: Cache) -> dict[str, Any]:
    """Read epochs from the disk, from the server, and again what was fetched; count bytes."""
    fetched = count_fetched()
    size = stored_bytes(folder)
    order = WindowOrder(shard_rows=(ROWS,) * SHARDS, window=WINDOW, seed=0)
    rates = {"disk": rate(dataset_of(pictures, cache), order, 1)}
    there = open_both(url, folder / "whole", 50.0)
    rates["store_cold"] = rate(dataset_of(*there), order, 1)
    once = sum(fetched) / size
    rates["store_warm"] = rate(dataset_of(*open_both(url, folder / "whole", 50.0)), order, 1)
    shares = {}
    orders: dict[str, RowOrder] = {"window": order, "uniform": Order(rows=SHARDS * ROWS, seed=0)}
    for name, kind in orders.items():
        fetched.clear()
        dataset = dataset_of(*open_both(url, folder / name, KEPT * size / 1e9))
        epochs = EPOCHS if name == "window" else 1
        rate(dataset, kind, epochs)
        shares[name] = round(sum(fetched) / epochs / size, 3)
    return {
        "rows": SHARDS * ROWS,
        "shards": SHARDS,
        "stored_mb": round(size / 1e6, 1),
        "kept_share": KEPT,
        "window_shards": WINDOW,
        "rows_per_s": {name: round(value, 1) for name, value in rates.items()},
        "fetched_of_stored_cold_epoch": round(once, 3),
        "fetched_of_stored_per_epoch": shares,
    }


def rate(dataset: RowDataset, order: RowOrder, epochs: int) -> float:
    """Rows read in a second."""
    steps = range(epochs * SHARDS * ROWS // BATCH)
    schedule = MicroBatchSchedule(batch=BATCH, micro_batch=BATCH, rank=0, world=1)
    began, rows = time.perf_counter(), 0
    with Prefetch(dataset, order) as prefetch:
        for batch in training_batches(
            dataset, order, schedule, steps, augment=Augment(), seed=0, workers=2, pin=False,
            before=prefetch.before,
        ):  # fmt: skip
            rows += len(batch.keys)
    return rows / (time.perf_counter() - began)


def dataset_of(pictures: PictureSet, cache: Cache) -> RowDataset:
    return RowDataset(pictures, "train", cache=cache, targets=("said",))


def open_both(url: str, local: Path, limit_gb: float) -> tuple[PictureSet, Cache]:
    (cache,) = find_caches(place_of(f"{url}/cache", str(local), limit_gb))
    return open_pictures(place_of(f"{url}/shards", str(local), limit_gb)), cache


def count_fetched() -> list[int]:
    """The bytes of each file of a shard that is fetched from now on."""
    sizes, plain = [], Store.download

    def download(self: Store, name: str, path: Path, size: int, sha256: str) -> None:
        plain(self, name, path, size, sha256)
        sizes.append(size)

    Store.download = download
    return sizes


def make_pictures(out: Path) -> PictureSet:
    """Pack drawn shapes as PNG files."""
    rows = []
    for i in range(SHARDS * ROWS):
        image, mask = (Image.fromarray(array) for array in draw_shapes(i, EDGE))
        drawn: Any = {"picture": encode_picture(image, "png"), "mask": encode_picture(mask, "png")}
        of_row: Any = {"height": EDGE, "width": EDGE, "inside": (0, 0, EDGE, EDGE)}
        rows.append(Prepared(key=f"p{i:04d}", extra=None, **of_row, **drawn))
    geometry = Geometry(height=EDGE, width=EDGE, fit="stretch")
    of_set = {"classes": ("a", "b", "c", "d"), "geometry": geometry, "picture_format": "png"}
    pack(out, {"train": rows}, shard_rows=ROWS, **of_set)
    return open_pictures(out)


def make_cache(root: Path, pictures: PictureSet) -> Cache:
    """Keep noise of 32 KiB for each picture."""
    names = ("split", "number", "rows", "pictures")
    said = {"teacher": {"class": "Noise"}, "shape": SHAPE, "stride": 4, "kind": "features"}
    identity = make_identity(
        pictures={
            "digest": pictures.digest,
            "shards": [{name: getattr(info, name) for name in names} for info in pictures.shards],
        },
        geometry=(EDGE, EDGE),
        views={"class": "Views", "count": 1, "regions": False},
        targets={"said": said | {"codec": "float16"}},
        calibration=[],
    )
    cache, generator = claim_cache(root, "noise", identity), np.random.default_rng(0)
    cache.publish_fitted({})
    for shard in cache.shard_ids():
        opened = pictures.open(shard)
        with cache.writer(shard) as writer:
            for picture in map(opened.read, range(ROWS)):
                value = generator.standard_normal(SHAPE).astype(np.float16)
                figures = RowStatistics(-9.0, 9.0, 1.0, None)
                crc = pixels_crc32c(picture)
                writer.append(whole_row(picture), {"said.value": value}, {"said": figures}, crc)
            writer.publish({})
    cache.finalize()
    return cache


def stored_bytes(folder: Path) -> int:
    """Bytes of the shards of pictures and cache, without their indexes."""
    files = [*folder.glob("shards/*.tar"), *folder.glob("cache/*/*.zarr/**/*")]
    return sum(f.stat().st_size for f in files if f.is_file() and f.name != "shard.json")


def serve() -> subprocess.Popen:
    """Start moto's server with a bucket; clients find it in the environment."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server, endpoint = subprocess.Popen(words, **quiet), f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }
    asked = urllib.request.Request(f"{endpoint}/bench", method="PUT")  # noqa: S310  (ours)
    for _ in range(100):
        try:
            urllib.request.urlopen(asked).close()  # noqa: S310
            return server
        except OSError:
            time.sleep(0.1)
    raise SystemExit("moto's server did not start")


def upload(folder: Path) -> str:
    store = Store("s3://bench")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path)
    return store.url


if __name__ == "__main__":
    main()
