"""No single flipped bit of any file is silent; `benchmarks/bit_flips.py` flips many more."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from stillroom.cache import Cache
from stillroom.errors import DamageError
from stillroom.types import ShardId

TRAIN = ShardId("train", 0)


@pytest.fixture(scope="module")
def flip_bits(load_module) -> ModuleType:
    return load_module("cache/flip_bits.py")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("codecs", ["float16", "coded", "int8"])
@pytest.mark.parametrize("per_file", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_flipped_bit_in_any_file_is_silent_and_its_file_is_named(
    flip_bits, tmp_path: Path, body: str, per_file: int, codecs: str
):
    cache = flip_bits.make_cache(tmp_path, body, codecs=codecs)
    found = flip_bits.flip(cache, per_file, seed=per_file)
    assert (found["silent_ones"], found["silent"], found["unnamed"]) == ([], 0, 0)
    assert found["noticed_by_scrub"] == found["flips"]  # whatever the reader looks at or not
    num_files = {"zarr": 9, "tar": 5}[body]
    assert found["flips"] > 0.8 * per_file * (num_files - 1)  # one file has only 128 bits


def test_without_the_check_flips_are_silent(flip_bits, tmp_path: Path, body: str):
    """The test of the test above: it is the checks that notice, not luck."""
    cache = flip_bits.make_cache(tmp_path, body)
    found = flip_bits.flip(cache, 12, seed=1, check=False)
    frames = {"zarr": "/c/0/0/0/0", "tar": "rows.tar"}[body]
    assert found["silent"] > 0 and any(frames in place for place in found["silent_ones"])


def test_without_the_checksum_wrong_values_are_read(cache: Cache, make):
    path = make.file(cache, TRAIN, "mask.value")
    with cache.reader(TRAIN) as reader:
        span, good = reader.shard_index.spans["mask.value"], reader.read(2)["mask.value"]
    data, num_wrong = path.read_bytes(), 0
    for byte in range(span.size[2]):
        damaged = bytearray(data)
        damaged[span.offset[2] + byte] ^= 1
        path.write_bytes(damaged)
        with cache.reader(TRAIN, check=False) as unchecked:
            try:
                read = unchecked.read(2)["mask.value"]
            except DamageError:
                continue
        num_wrong += not np.array_equal(read, good)
    assert num_wrong > span.size[2] / 2


def test_the_reader_names_shard_key_part_file_and_offset_of_every_flip_in_a_frame(
    cache: Cache, make
):
    path, generator = make.file(cache, TRAIN, "mask.value"), np.random.default_rng(3)
    data = path.read_bytes()
    with cache.reader(TRAIN) as reader:
        span = reader.shard_index.spans["mask.value"]
        for row in range(len(reader)):
            for bit in generator.choice(8 * span.size[row], 20, replace=False):
                damaged = bytearray(data)
                damaged[span.offset[row] + bit // 8] ^= 1 << (bit % 8)
                path.write_bytes(damaged)
                with pytest.raises(DamageError) as caught:
                    reader.read(row, ["mask.value"])
                text = str(caught.value)
                for name in ("train-000000", f"train-000000/{row:03d}", "mask.value", str(path)):
                    assert name in text
                assert f"offset {span.offset[row]}:" in text
