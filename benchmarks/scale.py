"""A hundred million rows in 25,000 shards: what opening costs, and how long it takes to know which
row comes next.

`python benchmarks/scale.py` writes `dataset.json` and a cache's `identity.json` of that size, with
an empty folder for every cached shard but one, opens them in a process of its own as training does,
and writes `benchmarks/results/scale_cpu<cores>_<yyyymm>.json`. No picture is there: what is read of
a shard when its turn comes is measured by `loader.py`. About a minute.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from bench.machine import RESULTS, save

from stillroom.cache.find import find_caches
from stillroom.cache.folder import claim_cache
from stillroom.cache.identity import describe_target, make_identity
from stillroom.jsonfile import write_json
from stillroom.pictures.dataset import (
    FORMAT,
    DataSet,
    Geometry,
    ShardInfo,
    open_pictures,
    set_digest,
)
from stillroom.training.order import Order
from stillroom.training.stream import RowDataset
from stillroom.types import TargetSpec

SHARDS, ROWS, ASKED = 25_000, 4_000, 20_000
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    own = parser.parse_args()
    if own.look is not None:
        print(json.dumps(look(own.look)))
        return
    with tempfile.TemporaryDirectory() as name:
        _simulate(Path(name))
        words = [sys.executable, __file__, "--look", name]
        found = [
            json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
            for _ in range(3)
        ]
        json_mb = sum(path.stat().st_size for path in Path(name).rglob("*.json")) / 1e6
    figures = {key: sorted(run[key] for run in found)[1] for key in found[0]}  # medians
    sizes = {"shards": SHARDS, "rows": SHARDS * ROWS, "json_mb": round(json_mb, 1)}
    save("scale", "python benchmarks/scale.py", sizes | figures, own.results)


def look(folder: Path) -> dict[str, float]:
    """Return seconds, megabytes and microseconds of what a run does before its first step."""
    before, began = _resident_mb(), time.perf_counter()
    pictures = open_pictures(folder / "shards")
    opened_pictures = time.perf_counter()
    (cache,) = find_caches(folder / "cache")
    opened_cache = time.perf_counter()
    dataset = RowDataset(pictures, "train", cache=cache, targets=("logits",))
    opened = time.perf_counter()
    num_missing = len(cache.missing())
    listed = time.perf_counter()
    assert (len(dataset), num_missing) == (SHARDS * ROWS, 1)
    order, draw = Order(rows=len(dataset), seed=0), random.Random(0)
    positions = [draw.randrange(100 * len(dataset)) for _ in range(ASKED)]
    asked = time.perf_counter()
    for position in positions:
        dataset.places.at(order.at(position)[1])
    answered = time.perf_counter()
    return {
        "open_pictures_s": round(opened_pictures - began, 3),
        "open_cache_s": round(opened_cache - opened_pictures, 3),
        "open_rows_s": round(opened - opened_cache, 3),
        "missing_s": round(listed - opened, 3),
        "resident_mb_more": round(_resident_mb() - before, 1),
        "place_of_a_position_us": round(1e6 * (answered - asked) / ASKED, 2),
    }


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_MB


def _simulate(folder: Path) -> None:
    def digest(text: str) -> str:
        return sha256(text.encode()).hexdigest()

    infos = tuple(
        ShardInfo(
            split="train",
            number=number,
            rows=ROWS,
            size=10**9,
            sha256=digest(f"tar {number}"),
            index_sha256=digest(f"index {number}"),
            pictures=digest(f"pictures {number}"),
        )
        for number in range(SHARDS)
    )
    body = DataSet(
        format=FORMAT,
        classes=("ground", "figure"),
        palette=((0, 0, 0), (255, 255, 255)),
        ignore=255,
        geometry=Geometry(height=64, width=64, fit="letterbox"),
        picture_format="jpg",
        shards=infos,
        digest=set_digest(infos),
    )
    (folder / "shards").mkdir()
    write_json(folder / "shards" / "dataset.json", body)
    spec = TargetSpec(name="logits", shape=(1, 64, 64), stride=1, kind="logits", codec="float16")
    shards = [
        {"split": i.split, "number": i.number, "rows": i.rows, "pictures": i.pictures}
        for i in infos
    ]
    identity = make_identity(
        pictures={"digest": body.digest, "shards": shards},
        geometry=(64, 64),
        views={"class": "Views", "count": 1, "regions": False},
        targets={"logits": describe_target(spec, {"class": "none"})},
        calibration=[],
    )
    cache = claim_cache(folder / "cache", "scale", identity)
    for shard in cache.shard_ids()[1:]:
        (cache.path / f"{shard}{cache.body.suffix}").mkdir()


if __name__ == "__main__":
    main()
