"""The Zarr body is an ordinary Zarr group, of whose metadata our reader takes nothing."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from stillroom.cache import Cache, scrub_shard
from stillroom.cache.body import Part
from stillroom.cache.zarr_body import dimension_names
from stillroom.types import ShardId

TRAIN = ShardId("train", 0)


@pytest.fixture
def body() -> str:
    return "zarr"


@pytest.mark.parametrize("codec", ["float16", "int8", "logits8", "stochastic:1.0"])
def test_plain_zarr_reads_equal_arrays(tmp_path: Path, make, codec: str):
    cache = make.cache(tmp_path, codec=codec)
    for shard_id in cache.shard_ids():
        group = zarr.open_group(make.folder(cache, shard_id), mode="r")
        with cache.reader(shard_id) as reader:
            for part in cache.parts:
                array = group[part.name]
                assert isinstance(array, zarr.Array)
                assert np.isnan(array.fill_value) == (part.stored.kind == "f")
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


def test_plain_zarr_lists_the_arrays_without_a_warning(cache: Cache, make):
    """`shard.json` lies in the folder, of which zarr warns where it has to list it."""
    names = sorted(part.name for part in cache.parts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(make.folder(cache, TRAIN), mode="r")
        assert sorted(group.array_keys()) == names
        assert sorted(name for name, _ in group.arrays()) == names


def test_the_group_says_of_each_array_what_its_own_file_says(cache: Cache, make):
    folder = make.folder(cache, TRAIN)
    consolidated = json.loads((folder / "zarr.json").read_text())["consolidated_metadata"]
    assert consolidated["metadata"] == {
        part.name: json.loads((folder / part.name / "zarr.json").read_text())
        for part in cache.parts
    }


def test_axes_of_a_target_share_names_and_no_name_has_two_lengths():
    shapes = {"a.value": (3, 4, 5), "a.scale": (3, 1, 1), "a.planes": (7,), "b.value": (1, 4, 5)}
    parts = tuple(Part(name=name, dtype="uint8", shape=shape) for name, shape in shapes.items())
    assert dimension_names(parts) == {
        "a.value": ("row", "a_c", "a_y", "a_x"),
        "a.scale": ("row", "a_c", "a.scale_1", "a.scale_2"),
        "a.planes": ("row", "a.planes_0"),
        "b.value": ("row", "b_c", "b_y", "b_x"),
    }


def test_xarray_opens_a_shard(cache: Cache, make):
    xarray = pytest.importorskip("xarray", reason="xarray is no dependency of ours")
    with cache.reader(TRAIN) as reader, xarray.open_zarr(make.folder(cache, TRAIN)) as shard:
        assert shard["mask.value"].dims == ("row", "mask_c", "mask_y", "mask_x")
        for part in cache.parts:
            ours = np.stack([reader.read(i)[part.name] for i in range(len(reader))])
            assert np.array_equal(shard[part.name].values, ours)


def test_our_reader_takes_no_shape_from_zarr(cache: Cache, make):
    metadata = make.folder(cache, TRAIN) / "mask.value" / "zarr.json"
    metadata.write_bytes(b"x" * metadata.stat().st_size)
    with cache.reader(TRAIN) as reader:
        assert len([reader.read(i) for i in range(len(reader))]) == 5
    (problem,) = scrub_shard(cache, TRAIN)
    assert f"the sha256 of {metadata} differs" in str(problem)
