"""A cache answers like a sequence of rows, and every row is the one that was written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import stillroom
from stillroom.cache import Cache, claim_cache
from stillroom.errors import DamageError, UserError
from stillroom.types import ShardId


def test_row_i_is_the_ith_of_all_shards_in_order(cache: Cache, make):
    opened = stillroom.open_cache(str(cache.path))
    wanted = [(s, i) for s in cache.shard_ids() for i in range(cache.shard_rows(s))]
    assert len(opened) == len(wanted) == 13
    for number, (shard, i) in enumerate(wanted):
        row = opened[number]
        assert (row.shard, row.key) == (shard, make.row(shard, i).key)
        said = make.values(cache, shard, i)
        for name, target in row.targets.items():
            assert target.dtype == torch.float32
            np.testing.assert_array_equal(target.numpy(), said[f"{name}.value"])


def test_negative_numbers_count_from_the_end_and_iteration_ends(cache: Cache):
    assert cache[-1].key == cache[12].key == [row.key for row in cache][-1]
    for i in (13, -14):
        with pytest.raises(IndexError, match=f"row {i} of 13"):
            cache[i]


def test_a_key_finds_its_rows_in_whatever_shard(cache: Cache):
    (row,) = cache.rows("val-000000/001")
    assert row.shard == ShardId("val", 0)
    assert torch.equal(row.targets["mask"], cache[11].targets["mask"])


def test_every_view_of_a_key_is_returned_in_order(tmp_path: Path, make):
    views = {"class": "Views", "count": 2, "regions": False}
    pictures = make.identity()["pictures"]
    for entry in pictures["shards"]:
        entry["rows"] *= 2 if entry["split"] == "train" else 1
    two = claim_cache(tmp_path, "two", make.identity(views=views, pictures=pictures))
    two.publish_fitted({})
    shard = ShardId("train", 0)
    with two.writer(shard) as writer:
        for i in range(two.shard_rows(shard)):
            said = make.values(two, shard, i)
            row = make.row(shard, i // 2)
            view = type(row.view)(number=i % 2, x0=0, y0=0, x1=40, y1=32)
            row = type(row)(key=row.key, view=view)
            writer.append(row, said, make.statistics(said), pixels=0)
        writer.publish({})
    assert [two[i].view.number for i in range(4)] == [0, 1, 0, 1]
    with pytest.raises(UserError, match=r"train-000001 .* is not published yet"):
        two.rows("train-000000/000")


def test_an_unknown_key_is_a_mistake_that_names_near_ones(cache: Cache):
    with pytest.raises(UserError) as caught:
        cache.rows("000000/00")
    near = [f"train-000000/00{number}" for number in range(3)]
    assert caught.value.wanted == " or ".join(near)


def test_a_missing_shard_is_said_to_be_unfinished(tmp_path: Path, make):
    empty = claim_cache(tmp_path, "empty", make.identity())
    empty.publish_fitted({})
    with pytest.raises(UserError, match="3 of 3 shards missing"):
        empty[0]


def test_a_damaged_row_is_never_returned(cache: Cache):
    shard = cache.shard_spec(ShardId("train", 0))
    path = cache.path / shard.folder / shard.body.file_of(shard.parts[0])
    data = bytearray(path.read_bytes())
    with cache.reader(ShardId("train", 0)) as reader:
        data[reader.shard_index.spans[shard.parts[0].name].offset[2] + 20] ^= 4
    path.write_bytes(data)
    assert cache[1].key == "train-000000/001"
    with pytest.raises(DamageError, match=r"train-000000/002.*crc32c"):
        cache[2]


def test_the_package_itself_imports_nothing_heavy():
    code = "import sys, stillroom; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="open_cash"):
        stillroom.open_cash  # noqa: B018
