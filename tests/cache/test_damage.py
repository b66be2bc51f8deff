"""Whatever happens to stored bytes, the reader or the scrub says so."""

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stillroom.cache import Cache, open_cache, scrub_shard
from stillroom.cache.frames import crc32c, decode_frame, encode_frame
from stillroom.errors import DamageError, StillroomError
from stillroom.jsonfile import read_json, write_json
from stillroom.types import ShardId

TRAIN, NEXT, VAL = ShardId("train", 0), ShardId("train", 1), ShardId("val", 0)


def shard_file(cache: Cache, shard_id: ShardId = TRAIN, part: str = "mask.value") -> Path:
    (of_name,) = [found for found in cache.parts if found.name == part]
    return folder_of(cache, shard_id) / cache.body.file_of(of_name)


def folder_of(cache: Cache, shard_id: ShardId = TRAIN) -> Path:
    return cache.path / cache.plan(shard_id).folder


def read_all(cache: Cache, shard_id: ShardId = TRAIN, *, check: bool = True) -> list[np.ndarray]:
    with cache.reader(shard_id, check=check) as reader:
        return [value for i in range(len(reader)) for value in reader.read(i).values()]


def is_noticed(cache: Cache) -> bool:
    """Whether opening, reading or scrubbing complains."""
    try:
        fresh = open_cache(cache.path)
        read_all(fresh)
        return bool(scrub_shard(fresh, TRAIN))
    except StillroomError:
        return True


def flips(data: bytes, count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """Copies of `data` with one random bit changed, and where."""
    generator = np.random.default_rng(seed)
    for bit in generator.choice(8 * len(data), min(count, 8 * len(data)), replace=False):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        yield int(bit // 8), bytes(changed)


def every_file(cache: Cache) -> list[Path]:
    folder = folder_of(cache)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [*files, cache.path / "identity.json", cache.path / "codecs.safetensors"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("per_file", [40, pytest.param(1900, marks=pytest.mark.slow)])
def test_no_single_bit_flip_in_any_file_is_silent(cache: Cache, per_file: int):
    silent, num_flips = [], 0
    assert not is_noticed(cache)
    for path in every_file(cache):
        data = path.read_bytes()
        for offset, changed in flips(data, per_file, seed=len(data)):
            path.write_bytes(changed)
            num_flips += 1
            if not is_noticed(cache):
                silent.append((path, offset))
        path.write_bytes(data)
    assert not silent and not is_noticed(cache)
    assert num_flips > 0.7 * per_file * len(every_file(cache))  # two files have fewer bits


def test_the_reader_alone_notices_every_flip_in_a_frame_and_names_the_place(cache: Cache):
    path = shard_file(cache)
    data, columns = path.read_bytes(), read_json(folder_of(cache) / "shard.json")["parts"]
    spans = list(zip(columns["mask.value"]["offset"], columns["mask.value"]["size"], strict=True))
    num_flips = 0
    with cache.reader(TRAIN) as reader:
        for offset, changed in flips(data, 400, seed=3):
            (row,) = [i for i, (o, n) in enumerate(spans) if o <= offset < o + n] or [None]
            if row is None:
                continue  # a trailing checksum or the index, which only zarr and the scrub use
            num_flips += 1
            path.write_bytes(changed)
            with pytest.raises(DamageError) as caught:
                reader.read(row)
            text = str(caught.value)
            for name in ("train-000000", f"train-000000/{row:03d}", "mask.value", str(path)):
                assert name in text
            assert f"offset {spans[row][0]}:" in text
    assert num_flips >= 10


def test_without_the_checksum_damage_is_silent(cache: Cache):
    """The test of the tests: it is the crc32c that notices, not luck."""
    path = shard_file(cache)
    data, good = path.read_bytes(), read_all(cache)
    span, silent = cache.reader(TRAIN).record.spans["mask.value"], 0
    start, end = span.offset[2], span.offset[2] + span.size[2]
    for _, changed in flips(data[start:end], 60, seed=5):
        path.write_bytes(data[:start] + changed + data[end:])
        try:
            read = read_all(cache, check=False)
        except DamageError:
            continue
        silent += any(not np.array_equal(a, b) for a, b in zip(read, good, strict=True))
    assert silent > 20


def test_truncation_and_garbage_are_noticed_when_the_shard_is_opened(cache: Cache):
    for path in every_file(cache)[:-2]:
        data = path.read_bytes()
        for length in {0, 1, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:length])
            with pytest.raises(DamageError):
                cache.reader(TRAIN)
            with pytest.raises(DamageError):
                cache.is_published(TRAIN)
        path.write_bytes(data + b"\0")
        with pytest.raises(DamageError):
            cache.reader(TRAIN)
        path.unlink()
        with pytest.raises(DamageError):
            cache.reader(TRAIN)
        path.write_bytes(data)
    assert not is_noticed(cache)


def test_a_file_cut_while_a_reader_is_open_is_an_error_not_a_signal(cache: Cache):
    reader = cache.reader(TRAIN)
    with shard_file(cache).open("rb+") as file:
        file.truncate(10)
    with pytest.raises(DamageError, match="ends early"):
        reader.read(0)


def test_zeroed_bytes_are_noticed(cache: Cache):
    path = shard_file(cache)
    data = path.read_bytes()
    path.write_bytes(b"\0" * (len(data) // 2) + data[len(data) // 2 :])
    with pytest.raises(DamageError, match="crc32c"):
        cache.reader(TRAIN).read(0)


def test_swapped_rows_are_noticed(cache: Cache):
    path = shard_file(cache)
    columns = read_json(folder_of(cache) / "shard.json")["parts"]["mask.value"]
    sizes = columns["size"]
    a, b = next((i, j) for i in range(5) for j in range(i) if sizes[i] == sizes[j])
    data = bytearray(path.read_bytes())
    (at, bt), length = (columns["offset"][a], columns["offset"][b]), sizes[a] + 4
    data[at : at + length], data[bt : bt + length] = (
        data[bt : bt + length],
        data[at : at + length],
    )
    path.write_bytes(data)
    reader = cache.reader(TRAIN)
    for row in (a, b):
        with pytest.raises(DamageError, match="crc32c"):
            reader.read(row)
    assert len(scrub_shard(cache, TRAIN)) >= 3


def test_swapped_shards_are_noticed(cache: Cache):
    first, second = (folder_of(cache, shard_id) for shard_id in (TRAIN, NEXT))
    first.rename(cache.path / "aside")
    second.rename(first)
    (cache.path / "aside").rename(second)
    for shard_id in (TRAIN, NEXT):
        with pytest.raises(DamageError, match="another shard"):
            cache.reader(shard_id)
        assert scrub_shard(cache, shard_id)


def test_a_foreign_shard_of_equal_shape_is_noticed(tmp_path: Path, cache: Cache, make):
    targets = make.identity()["targets"]
    targets["mask"]["teacher"]["weights_sha256"] = "00" * 32
    other = make.cache(tmp_path / "other", targets=targets)
    folder = folder_of(cache)
    shutil.rmtree(folder)
    shutil.copytree(other.path / folder.name, folder)
    with pytest.raises(DamageError, match="fingerprint differs"):
        cache.reader(TRAIN)
    assert scrub_shard(cache, TRAIN)


def test_one_file_of_another_shard_is_noticed(cache: Cache):
    shutil.copyfile(shard_file(cache, NEXT), shard_file(cache, TRAIN))
    with pytest.raises(DamageError):
        read_all(cache)
    assert scrub_shard(cache, TRAIN)


def test_other_fitted_values_are_noticed(cache: Cache):
    path = cache.path / "codecs.safetensors"
    path.write_bytes(struct.pack("<Q", 16) + b"{}" + b" " * 14)
    with pytest.raises(DamageError, match="codecs_sha256 differs"):
        open_cache(cache.path).reader(TRAIN)


def forge(cache: Cache, member: str, column: str, row: int, value: object) -> None:
    """Rewrite shard.json with a valid checksum, as only a faulty writer or an enemy would."""
    path = folder_of(cache) / "shard.json"
    body = read_json(path)
    owner = body["rows"] if member == "rows" else body["parts"][member]
    owner[column][row] = value
    write_json(path, body)


@pytest.mark.parametrize("value", [2**64 - 1, 2**62, 10**30, -1, 7, 1.5, True, None, "0", [0]])
@pytest.mark.parametrize("column", ["offset", "size", "crc32c"])
def test_an_index_entry_outside_the_file_is_refused_at_opening(cache: Cache, column, value):
    forge(cache, "mask.value", column, 2, value)
    if value == 7 and (column == "crc32c" or (column == "size" and cache.body.suffix == ".wds")):
        with pytest.raises(DamageError, match="crc32c"):  # a shorter member is inside its block
            cache.reader(TRAIN).read(2)
    else:
        with pytest.raises(DamageError, match=r"part|column"):
            cache.reader(TRAIN)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("key", "train-000000/000"),
        ("key", "../../etc/passwd"),
        ("key", "x" * 100_000),
        ("region", -1),
        ("view", [1, 0, 0, 40, 32, 0]),
        ("view", [0, 0, 0, 0, 32, 0]),
        ("view", [0, 0, 0, 40, 32, 2]),
        ("view", [0, 0, 0, 40, 32]),
    ],
)
def test_rows_that_cannot_be_are_refused_at_opening(cache: Cache, column, value):
    forge(cache, "rows", column, 2, value)
    with pytest.raises(DamageError):
        cache.reader(TRAIN)


def test_swapped_keys_are_refused_at_opening(cache: Cache):
    forge(cache, "rows", "key", 2, "train-000000/003")
    forge(cache, "rows", "key", 3, "train-000000/002")
    with pytest.raises(DamageError, match="not in order"):
        cache.reader(TRAIN)


@pytest.mark.parametrize(
    ("target", "column", "value"),
    [
        ("mask", "min", None),
        ("mask", "max", "0"),
        ("mask", "finite", 1.5),
        ("mask", "confidence", None),
        ("mask", "confidence", -0.1),
        ("mask", "confidence", True),
        ("detector", "confidence", 0.5),
    ],
)
def test_figures_that_cannot_be_are_refused_at_opening(
    cache: Cache, target: str, column: str, value: object
):
    path = folder_of(cache) / "shard.json"
    body = read_json(path)
    body["statistics"][target][column][2] = value
    write_json(path, body)
    with pytest.raises(DamageError, match="row 2 of a column"):
        cache.reader(TRAIN)


@pytest.mark.parametrize("missing", ["rows", "parts", "files", "statistics", "provenance"])
@pytest.mark.parametrize("value", [None, {}, [], 5])
def test_a_record_without_a_member_is_refused(cache: Cache, missing: str, value: object):
    path = folder_of(cache) / "shard.json"
    body = read_json(path)
    if missing == "provenance" and value == {}:
        return
    body[missing] = value
    write_json(path, body)
    with pytest.raises(DamageError):
        cache.reader(TRAIN)


def test_paths_in_a_record_are_never_followed(cache: Cache):
    path = folder_of(cache) / "shard.json"
    body = read_json(path)
    body["files"]["../identity.json"] = body["files"].pop(next(iter(body["files"])))
    write_json(path, body)
    with pytest.raises(DamageError, match="files are"):
        cache.reader(TRAIN)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(cache: Cache):
    bomb = np.frombuffer(encode_frame(np.zeros(1 << 26, np.uint8), 1), np.uint8)
    with pytest.raises(DamageError, match="size"):
        decode_frame(bomb, np.empty(40, np.uint8))
    lying = bytearray(bomb.tobytes())  # the header states 40 bytes, the blocks hold 64 MB
    lying[4] = 0x20
    del lying[6:9]
    lying[5] = 40
    out = np.full(41, 9, np.uint8)
    with pytest.raises(DamageError):
        decode_frame(np.frombuffer(bytes(lying), np.uint8), out[:40])
    assert out[40] == 9 and crc32c(bomb) == crc32c(bomb.tobytes())


def test_the_scrub_names_files_that_do_not_belong(cache: Cache):
    (folder_of(cache) / "stranger").write_text("x")
    (problem,) = scrub_shard(cache, TRAIN)
    assert f"{folder_of(cache) / 'stranger'} does not belong" in str(problem)


def test_a_link_in_place_of_a_file_is_refused(cache: Cache):
    path = shard_file(cache)
    path.rename(cache.path / "aside")
    path.symlink_to(cache.path / "aside")
    with pytest.raises(DamageError, match="another size"):
        cache.reader(TRAIN)


def test_a_bad_shard_is_quarantined_and_made_again(cache: Cache, make):
    assert cache.finalize() and cache.is_complete
    shard_file(cache).write_bytes(b"")
    with pytest.raises(DamageError):
        cache.finalize()
    (place,) = cache.quarantine_bad()
    assert place.parent == cache.path / "quarantine" and not cache.is_complete
    assert "size" in read_json(place.with_name(f"{place.name}.json"))["why"]
    assert cache.quarantine(TRAIN, "gone already") is None
    assert cache.missing() == (TRAIN,) and not cache.is_published(TRAIN)
    assert not cache.finalize()
    assert make.shard(cache, TRAIN) and cache.finalize() and cache.is_complete
    assert not any(scrub_shard(cache, shard_id) for shard_id in cache.shard_ids())
