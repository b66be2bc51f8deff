"""The Zarr body is an ordinary Zarr group, and its own metadata is checked by the scrub."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from stillroom.cache import Cache, scrub_shard
from stillroom.jsonfile import read_json, write_json
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


def test_the_scrub_names_exotic_metadata(cache: Cache, make):
    folder = make.folder(cache, TRAIN)
    metadata = folder / "mask.value" / "zarr.json"
    document = json.loads(metadata.read_text())
    document["shape"] = [10**12, 1, 4, 5]
    changed = json.dumps(document, indent=2)
    metadata.write_text(changed)
    body = read_json(folder / "shard.json")
    body["files"]["mask.value/zarr.json"] = {
        "size": len(changed),
        "sha256": hashlib.sha256(changed.encode()).hexdigest(),
    }
    write_json(folder / "shard.json", body)
    (problem,) = scrub_shard(cache, TRAIN)
    assert f"{metadata}: another shape, type or codec" in str(problem)
    with cache.reader(TRAIN) as reader:  # takes no shape from there
        assert len([reader.read(i) for i in range(len(reader))]) == 5
