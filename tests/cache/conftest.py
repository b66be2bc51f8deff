"""A small cache of two targets and three shards, and the parts to make others."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.cache import Cache, claim_cache, make_identity
from stillroom.cache.folder import BODIES
from stillroom.types import Row, RowStatistics, ShardId, View

SHARDS = (("train", 0, 5), ("train", 1, 5), ("val", 0, 3))
Values = dict[str, np.ndarray]


def identity_of(codec: str = "float16", **changes: Any) -> dict[str, Any]:
    """The identity of the small cache, with some arguments of `make_identity` changed."""

    def target(shape: tuple[int, int, int], kind: str) -> dict[str, Any]:
        teacher = {"class": "Fake", "weights_sha256": "ab" * 32, "mean": [0.5, 0.5, 0.5]}
        return {"teacher": teacher, "shape": shape, "stride": 8, "kind": kind, "codec": codec}

    shards = [{"split": s, "number": n, "rows": r, "pictures": "cd" * 32} for s, n, r in SHARDS]
    arguments: dict[str, Any] = {
        "pictures": {"digest": "ef" * 32, "shards": shards},
        "geometry": (32, 40),
        "views": {"class": "Views", "count": 1, "regions": False},
        "targets": {"detector": target((3, 4, 5), "features"), "mask": target((1, 4, 5), "logits")},
        "calibration": [],
    }
    return make_identity(**(arguments | changes))


def row_of(shard_id: ShardId, i: int) -> Row:
    return Row(key=f"{shard_id}/{i:03d}", view=View(x0=0, y0=0, x1=40, y1=32))


def pixels_of(i: int) -> int:
    """The crc32c of a picture, the largest among them."""
    return (1 << 32) - 1 - i


def values_of(cache: Cache, shard_id: ShardId, i: int) -> Values:
    """What the fake teacher says: random, a function of cache, shard and row."""
    seed = [int(cache.fingerprint[:8], 16), shard_id.split == "val", shard_id.number, i]
    generator = np.random.default_rng(seed)
    return {part.name: _values(generator, part.shape, np.dtype(part.dtype)) for part in cache.parts}


def _values(generator: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(-9, 9, shape).astype(dtype)  # bytes of any codec, small ones


def statistics_of(values: Values) -> dict[str, RowStatistics]:
    """Figures of the small cache's targets, or of those among them; `mask` holds logits."""
    return {
        (target := name.partition(".")[0]): RowStatistics(
            float(value.min()), float(value.max()), 1.0, 0.75 if target == "mask" else None, 0.125
        )
        for name, value in values.items()
    }


def fill_shard(
    cache: Cache, shard_id: ShardId, values: Callable[[Cache, ShardId, int], Values] = values_of
) -> bool:
    with cache.writer(shard_id) as writer:
        for i in range(cache.shard_rows(shard_id)):
            said = values(cache, shard_id, i)
            writer.append(row_of(shard_id, i), said, statistics_of(said), pixels=pixels_of(i))
        return writer.publish({"device": "none"})


def fill_cache(root: Path, name: str = "small", **changes: Any) -> Cache:
    cache = claim_cache(root, name, identity_of(**changes))
    cache.publish_fitted({})
    for shard_id in cache.shard_ids():
        assert fill_shard(cache, shard_id)
    return cache


def shard_folder(cache: Cache, shard_id: ShardId) -> Path:
    return cache.path / cache.shard_spec(shard_id).folder


def part_file(cache: Cache, shard_id: ShardId, part: str) -> Path:
    """The file that holds a part's frames."""
    (of_name,) = [found for found in cache.parts if found.name == part]
    return shard_folder(cache, shard_id) / cache.body.file_of(of_name)


class Make:
    """The functions above, for tests (test folders are no packages); caches have one body."""

    row = staticmethod(row_of)
    values = staticmethod(values_of)
    statistics = staticmethod(statistics_of)
    shard = staticmethod(fill_shard)
    folder = staticmethod(shard_folder)
    file = staticmethod(part_file)

    def __init__(self, body: str) -> None:
        self.body = body
        self.identity = partial(identity_of, body=body)
        self.cache = partial(fill_cache, body=body)


@pytest.fixture(params=list(BODIES))
def body(request: pytest.FixtureRequest) -> str:
    """Each body in turn, so that whatever uses `make` or `cache` runs on all of them."""
    return request.param


@pytest.fixture
def make(body: str) -> Make:
    return Make(body)


@pytest.fixture
def cache(tmp_path: Path, make: Make) -> Cache:
    """The small cache, all shards published."""
    return make.cache(tmp_path / "cache")
