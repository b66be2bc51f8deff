"""docs/format.md is complete: a reader made from it alone reads what ours reads."""

import ast
import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import google_crc32c
import numpy as np
import pytest
import torch

from stillroom.cache import Cache, claim_cache
from stillroom.types import Row, RowStatistics, ShardId, View

TRAIN = ShardId("train", 0)
READER = Path(__file__).with_name("independent_reader.py")


@pytest.fixture(scope="module")
def independent() -> ModuleType:
    spec = importlib.util.spec_from_file_location("independent_reader", READER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_independent_reader_reads_every_row_as_ours_does(independent, cache: Cache):
    theirs = list(independent.read_cache(cache.path))
    ours = []
    for shard_id in cache.shard_ids():
        with cache.reader(shard_id) as reader:
            ours += [(row, reader.read(i)) for i, row in enumerate(reader.rows)]
    assert len(theirs) == len(ours) == 13
    for (key, region, view, parts), (row, values) in zip(theirs, ours, strict=True):
        assert (key, region) == (row.key, row.region)
        v = row.view
        assert view == [v.number, v.x0, v.y0, v.x1, v.y1, int(v.mirrored)]
        assert parts.keys() == values.keys()
        for name, value in values.items():
            assert parts[name].dtype == value.dtype and np.array_equal(parts[name], value)


@pytest.mark.parametrize(
    "codec", ["float16", "int8", "logits8", "stochastic:0.1", "stochastic:3.0"]
)
def test_it_decodes_every_codec_as_ours_does(independent, tmp_path: Path, make, codec: str):
    generator = torch.Generator().manual_seed(0)
    targets = make.identity(codec=codec)["targets"] | {
        "several": make.identity(codec=codec)["targets"]["detector"] | {"kind": "logits"}
    }
    cache = claim_cache(tmp_path, "coded", make.identity(targets=targets))
    said = {
        name: 3 * torch.randn((5, *spec.shape), generator=generator) ** 3 + 1
        for name, spec in cache.specs.items()
    }
    fit = {name: c.fit([said[name]]) for name, c in cache.codecs.items() if c.needs_fit}
    cache.publish_fitted(fit)
    rows, shard = [make.row(TRAIN, i) for i in range(5)], []
    kept = {name: cache.encode(name, value, rows) for name, value in said.items()}
    with cache.writer(TRAIN) as writer:
        for i, row in enumerate(rows):
            parts = {f"{n}.{p}": v[i].numpy() for n, all_ in kept.items() for p, v in all_.items()}
            shard.append(parts)
            figures = {
                n: RowStatistics(0.0, 1.0, 1.0, 0.5 if s.kind == "logits" else None, 0.1)
                for n, s in cache.specs.items()
            }
            writer.append(row, parts, figures, pixels=0)
        assert writer.publish({})
    theirs = itertools.islice(independent.read_cache(cache.path), 5)
    for i, (_, _, _, parts) in enumerate(theirs):
        assert all(np.array_equal(parts[name], value) for name, value in shard[i].items())
        values = independent.decoded(cache.path, parts)
        for name, value in values.items():
            ours = cache[i].targets[name]
            torch.testing.assert_close(torch.from_numpy(value), ours, rtol=1e-6, atol=1e-6)


def test_it_reads_regions_and_views(independent, tmp_path: Path, make):
    shards = [{"split": "train", "number": 7, "rows": 4, "pictures": "cd" * 32}]
    identity = make.identity(
        pictures={"digest": "ef" * 32, "shards": shards},
        views={"class": "Views", "count": 2, "regions": False},
    )
    cache = claim_cache(tmp_path, "views", identity)
    cache.publish_fitted({})
    view = View(x0=0, y0=0, x1=40, y1=32)
    mirrored = View(number=1, x0=2, y0=1, x1=40, y1=32, mirrored=True)
    rows = [Row(key="a", region=region, view=v) for region in (None, 3) for v in (view, mirrored)]
    with cache.writer(ShardId("train", 7)) as writer:
        for i, row in enumerate(rows):
            said = make.values(cache, ShardId("train", 7), i)
            writer.append(row, said, make.statistics(said), pixels=0)
        assert writer.publish({})
    found = [(region, view) for _, region, view, _ in independent.read_cache(cache.path)]
    whole, part = [0, 0, 0, 40, 32, 0], [1, 2, 1, 40, 32, 1]
    assert found == [(None, whole), (None, part), (3, whole), (3, part)]


def test_it_notices_a_flipped_bit_in_frames_and_json(independent, cache: Cache, make):
    span = cache.reader(ShardId("train", 0)).shard_index.spans["mask.value"]
    places = [
        (make.file(cache, ShardId("train", 0), "mask.value"), span.offset[2] + 9),
        (make.folder(cache, ShardId("train", 0)) / "shard.json", 100),
        (cache.path / "identity.json", 100),
    ]
    for path, offset in places:
        data = bytearray(path.read_bytes())
        data[offset] ^= 2
        path.write_bytes(data)
        with pytest.raises(ValueError, match="damaged"):
            list(independent.read_cache(cache.path))
        data[offset] ^= 2
        path.write_bytes(data)
    assert len(list(independent.read_cache(cache.path))) == 13


def test_its_checksum_is_castagnoli_s(independent):
    assert independent.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    data = np.random.default_rng(1).bytes(999)
    assert independent.crc32c(data) == google_crc32c.value(data)


def test_it_imports_nothing_of_ours_and_no_zarr_or_tar():
    names = set()
    for node in ast.walk(ast.parse(READER.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
    assert names == {
        "collections.abc", "hashlib", "json", "math", "numcodecs", "numpy", "pathlib", "sys",
        "typing",
    }  # fmt: skip
