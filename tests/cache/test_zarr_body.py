"""The Zarr body is an ordinary Zarr group, of whose metadata our reader takes nothing."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from stillroom.cache import Cache, scrub_shard
from stillroom.types import ShardId

TRAIN = ShardId("train", 0)


@pytest.fixture
def body() -> str:
    return "zarr"


def test_plain_zarr_reads_equal_arrays(cache: Cache, make):
    for shard_id in cache.shard_ids():
        group = zarr.open_group(make.folder(cache, shard_id), mode="r")
        with cache.reader(shard_id) as reader:
            for part in cache.parts:
                array = group[part.name]
                assert isinstance(array, zarr.Array) and np.isnan(array.fill_value)
                ours = np.stack([reader.read(i)[part.name] for i in range(len(reader))])
                assert np.array_equal(np.asarray(array[:]), ours)


def test_plain_zarr_reads_a_row_of_zeros(tmp_path: Path, make):
    def zeros(cache, shard_id, i):
        said = make.values(cache, shard_id, i)
        return {name: value * 0 if i == 1 else value for name, value in said.items()}

    cache = make.cache(tmp_path)
    cache.quarantine(TRAIN, "to be made of zeros")
    assert make.shard(cache, TRAIN, zeros)
    array = zarr.open_group(make.folder(cache, TRAIN), mode="r")["detector.value"]
    assert isinstance(array, zarr.Array) and not np.asarray(array[1]).any()
    assert np.asarray(array[0]).any() and np.asarray(array[2]).any()


def test_our_reader_takes_no_shape_from_zarr(cache: Cache, make):
    metadata = make.folder(cache, TRAIN) / "mask.value" / "zarr.json"
    metadata.write_bytes(b"x" * metadata.stat().st_size)
    with cache.reader(TRAIN) as reader:
        assert len([reader.read(i) for i in range(len(reader))]) == 5
    (problem,) = scrub_shard(cache, TRAIN)
    assert f"the sha256 of {metadata} differs" in str(problem)
