"""Flips single bits of every file of a cache: do the reader and the check notice?"""

import contextlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.cache import Cache, claim_cache, make_identity, open_cache
from stillroom.checking.check import check_cache
from stillroom.errors import StillroomError
from stillroom.types import Row, RowStatistics, ShardId, View

SHARD, NUM_ROWS = ShardId("train", 0), 6
TARGETS = {"detector": ((6, 8, 10), "features"), "mask": ((1, 8, 10), "logits")}
CODECS = {  # of each target
    "float16": ("float16", "float16"),
    "coded": ("stochastic:1.0", "logits8"),
    "int8": ("int8", "int8"),
}


def make_cache(root: Path, body: str, seed: int = 0, codecs: str = "float16") -> Cache:
    """A finished cache of one shard of two targets, with random values."""
    shards = [{"split": "train", "number": 0, "rows": NUM_ROWS, "pictures": "0" * 64}]
    targets = {
        name: {"teacher": {}, "shape": shape, "stride": 8, "kind": kind, "codec": codec}
        for (name, (shape, kind)), codec in zip(TARGETS.items(), CODECS[codecs], strict=True)
    }
    identity = make_identity(
        pictures={"digest": "0" * 64, "shards": shards},
        geometry=(64, 80),
        views={"class": "Views", "count": 1, "regions": False},
        targets=targets,
        calibration=[],
        body=body,
    )
    cache, generator = claim_cache(root, "flips", identity), np.random.default_rng(seed)
    fit = torch.from_numpy(generator.standard_normal((4, *TARGETS["detector"][0]))).float()
    of_detector = cache.codecs["detector"].fit([fit])  # of float16: nothing
    cache.publish_fitted({"detector": of_detector})
    figures = {
        "detector": RowStatistics(-9.0, 9.0, 1.0, None),
        "mask": RowStatistics(-9.0, 9.0, 1.0, 0.5),
    }
    with cache.writer(SHARD) as writer:
        for i in range(NUM_ROWS):
            row = Row(key=f"{i:06d}", view=View(x0=0, y0=0, x1=80, y1=64))
            outputs = {}
            for name, (shape, _) in TARGETS.items():
                said = torch.from_numpy(generator.standard_normal((1, *shape))).float()
                for part, value in cache.encode(name, said, [row]).items():
                    outputs[f"{name}.{part}"] = value[0].numpy()
            writer.append(row, outputs, figures, pixels=0)
        assert writer.publish({})
    assert cache.finalize()
    return cache


def flip(cache: Cache, count: int, seed: int, *, check: bool = True) -> dict[str, Any]:
    """Flip up to `count` random bits of each file, one at a time; say what was noticed by whom."""
    generator, tally, unnoticed = np.random.default_rng(seed), Counter[str](), []
    assert not any(outputs(cache.path, check)), "damaged before anything was flipped"
    for path in sorted(path for path in cache.path.rglob("*") if path.is_file()):
        name, num_bits = path.relative_to(cache.path).as_posix(), 8 * path.stat().st_size
        bits = generator.choice(num_bits, min(count, num_bits), replace=False)
        for bit in map(int, bits):
            _toggle(path, bit)
            read, scrubbed = outputs(cache.path, check)
            _toggle(path, bit)
            tally["flips"] += 1
            tally["reader"] += bool(read)
            tally["scrub"] += bool(scrubbed)
            if not (read or scrubbed):
                unnoticed.append(f"{name} bit {bit}")
            elif path.name not in read + scrubbed:
                tally["unnamed"] += 1
    assert not any(outputs(cache.path, check)), "damaged after every bit was flipped back"
    return {
        "flips": tally["flips"],
        "silent": len(unnoticed),
        "unnamed": tally["unnamed"],
        "noticed_by_reader": tally["reader"],
        "noticed_by_scrub": tally["scrub"],
        "silent_ones": unnoticed[:20],
    }


def outputs(folder: Path, check: bool = True) -> tuple[str, str]:
    """What reading every row says, and what the check of the whole cache says."""
    read = scrubbed = ""
    try:
        cache = open_cache(folder)
        with cache.reader(SHARD, check=check) as reader:
            for i in range(len(reader)):
                reader.read(i)
    except StillroomError as error:
        read = str(error)
    if check:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress
            try:
                scrubbed = "\n".join(map(str, check_cache(folder, workers=1).problems))
            except StillroomError as error:
                scrubbed = str(error)
    return read, scrubbed


def _toggle(path: Path, bit: int) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
