"""The reader: every byte checked, damage named, files given back."""

import gc
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import digest, read_json, write_json
from stillroom.pictures.dataset import open_pictures, set_digest
from stillroom.pictures.make import make_shards
from stillroom.random_access import RandomAccessFile
from stillroom.types import ShardId

FIRST = ShardId("train", 0)


@pytest.fixture
def packed(folders: Callable, tmp_path: Path) -> Path:
    """Six labelled pictures in two shards."""
    make_shards(folders(6).text, out=tmp_path / "out", shard_rows=3, val_share=0.0)
    return tmp_path / "out"


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _rewrite_index(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the first shard's index and make every checksum fit again, as an enemy would."""
    index = read_json(folder / "train-000000.json")
    change(index)
    write_json(folder / "train-000000.json", index)
    body = read_json(folder / "dataset.json")
    body["shards"][0]["index_sha256"] = digest(index)
    write_json(folder / "dataset.json", body)


def test_damage_at_any_byte_of_a_picture_or_mask_names_shard_key_and_offset(packed: Path) -> None:
    tar, random = packed / "train-000000.tar", np.random.default_rng(0)
    whole = tar.read_bytes()
    rows = read_json(packed / "train-000000.json")["rows"]
    for member in ("picture", "mask"):
        for _ in range(20):
            offset, size, _ = rows[member][1]
            data = bytearray(whole)
            data[offset + random.integers(size)] ^= 1 << random.integers(8)
            tar.write_bytes(data)
            shard = open_pictures(packed).open(FIRST)
            shard.read(0)
            with pytest.raises(
                DamageError,
                match=f"train-000000.tar: the {member} of {rows['key'][1]} at byte {offset} is",
            ):
                shard.read(1)


def test_without_the_checksum_the_damage_test_would_fail(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test: some bit flips decode quietly, so it is the crc32c that finds them."""
    tar = packed / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    offset, size, crc = read_json(packed / "train-000000.json")["rows"]["picture"][1]
    data[offset + size // 2] ^= 1
    tar.write_bytes(data)
    monkeypatch.setattr(google_crc32c, "value", lambda data: crc)
    shard = open_pictures(packed).open(FIRST)
    shard.read_bytes(1)


@pytest.mark.parametrize("change", [-512, -1, 1])
def test_a_tar_of_another_length_is_refused_when_opened(packed: Path, change: int) -> None:
    tar = packed / "train-000000.tar"
    os.truncate(tar, tar.stat().st_size + change)
    before = _open_files()
    with pytest.raises(DamageError, match=r"train-000000\.tar has the wrong size"):
        open_pictures(packed).open(FIRST)
    assert _open_files() == before


def test_a_tar_cut_while_open_is_noticed(packed: Path) -> None:
    shard = open_pictures(packed).open(FIRST)
    os.truncate(packed / "train-000000.tar", 700)
    with pytest.raises(DamageError, match=f"{shard.keys[0]} at byte 512 is damaged"):
        shard.read(0)


def test_missing_files_are_named(packed: Path) -> None:
    (packed / "train-000000.tar").unlink()
    with pytest.raises(DamageError, match=r"train-000000\.tar is missing"):
        open_pictures(packed).open(FIRST)
    (packed / "train-000000.json").unlink()
    with pytest.raises(DamageError, match=r"train-000000\.json is missing"):
        open_pictures(packed).open(FIRST)


def test_swapped_shards_are_noticed(packed: Path) -> None:
    names = [packed / f"train-{number:06d}.json" for number in (0, 1)]
    first, second = (name.read_bytes() for name in names)
    names[0].write_bytes(second)
    names[1].write_bytes(first)
    with pytest.raises(DamageError, match="is not the index that dataset"):
        open_pictures(packed).open(FIRST)


def test_any_changed_byte_of_an_index_or_of_dataset_json_is_noticed(packed: Path) -> None:
    for name in ("train-000000.json", "dataset.json"):
        whole = (packed / name).read_bytes()
        for place in np.random.default_rng(1).integers(0, len(whole), 25):
            data = bytearray(whole)
            data[place] ^= 4
            (packed / name).write_bytes(data)
            with pytest.raises(DamageError):
                open_pictures(packed).open(FIRST)
        (packed / name).write_bytes(whole)
    open_pictures(packed).open(FIRST)


@pytest.mark.parametrize(
    "span",
    [
        [10**9, 5, 0],
        [0, 2**64 - 1, 0],
        [-512, 5, 0],
        [512, -1, 0],
        [512, 5, 2**32],
        [512, 1.5, 0],
        [512, True, 0],
        [512, 5],
        "512",
    ],
)
def test_an_index_entry_outside_the_file_is_refused_unread(packed: Path, span: object) -> None:
    def change(index: dict) -> None:
        index["rows"]["picture"][0] = span

    _rewrite_index(packed, change)
    with pytest.raises(DamageError, match=r"train-000000\.json is not what"):
        open_pictures(packed).open(FIRST)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("height", 10**9),
        ("height", 0),
        ("width", "32"),
        ("inside", [0, 0, 33, 24]),
        ("inside", [5, 0, 5, 24]),
        ("key", "../../etc"),
        ("key", "q02"),  # sorts after those that follow it
        ("picture", None),
    ],
)
def test_impossible_columns_are_refused(packed: Path, column: str, value: object) -> None:
    def change(index: dict) -> None:
        index["rows"][column][0] = value

    _rewrite_index(packed, change)
    with pytest.raises(DamageError, match=r"train-000000\.json is not what"):
        open_pictures(packed).open(FIRST)


def test_a_picture_of_another_size_than_its_index_says_is_refused(packed: Path) -> None:
    def change(index: dict) -> None:
        index["rows"]["height"][0], index["rows"]["inside"][0] = 25, [0, 0, 32, 25]

    _rewrite_index(packed, change)
    shard = open_pictures(packed).open(FIRST)
    with pytest.raises(DamageError, match=f"the picture of {shard.keys[0]} cannot be decoded"):
        shard.read(0)


def test_folders_without_dataset_json_are_not_finished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stillroom shards") as error:
        open_pictures(tmp_path / "none")
    assert error.value.found == "no such folder"
    with pytest.raises(UserError, match=r"without dataset\.json"):
        open_pictures(tmp_path)


def test_another_format_and_a_wrong_digest_are_refused(packed: Path) -> None:
    body = read_json(packed / "dataset.json")
    write_json(packed / "dataset.json", {**body, "format": "stillroom pictures 2"})
    with pytest.raises(UserError, match="stillroom pictures 2"):
        open_pictures(packed)
    write_json(packed / "dataset.json", {**body, "digest": "0" * 64})
    with pytest.raises(DamageError, match="digest"):
        open_pictures(packed)
    for name, value in (("shards", [{}]), ("classes", 3), ("geometry", {"height": 3})):
        write_json(packed / "dataset.json", {**body, name: value})
        with pytest.raises(DamageError, match=r"is not what|digest"):
            open_pictures(packed)


def test_the_digest_is_that_of_the_format_page(packed: Path) -> None:
    """Recomputed from the description alone."""
    import hashlib

    lines = []
    for name in ("train-000000", "train-000001"):
        rows, tar = (
            read_json(packed / f"{name}.json")["rows"],
            (packed / f"{name}.tar").read_bytes(),
        )
        total = b""
        for key, (offset, size, _) in zip(rows["key"], rows["picture"], strict=True):
            total += key.encode() + b"\0" + hashlib.sha256(tar[offset : offset + size]).digest()
        lines.append(f"{name} {len(rows['key'])} {hashlib.sha256(total).hexdigest()}\n")
    pictures = open_pictures(packed)
    assert pictures.digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert pictures.digest == set_digest(pictures.shards)
    tar_sha = hashlib.sha256((packed / "train-000000.tar").read_bytes()).hexdigest()
    assert pictures.shards[0].sha256 == tar_sha


def test_many_threads_read_what_one_reads(packed: Path) -> None:
    pictures = open_pictures(packed)
    places = [(shard, i) for shard in pictures.shard_ids() for i in range(3)]
    alone = [pictures.open(shard).read(i) for shard, i in places]
    barrier = threading.Barrier(8)

    def read(number: int) -> bool:
        barrier.wait()
        order = np.random.default_rng(number).permutation(len(places) * 5) % len(places)
        return all(
            (pictures.open(places[p][0]).read(places[p][1]).image == alone[p].image).all()
            for p in order
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


def test_masks_are_left_out_when_not_wanted_and_arrays_are_writable(packed: Path) -> None:
    shard = open_pictures(packed).open(FIRST)
    assert shard.has_mask(0) and shard.read(0, labels=False).mask is None
    row = shard.read(0)
    assert row.image.flags.writeable and row.image.dtype == np.uint8
    assert row.mask is not None and row.mask.flags.writeable


def test_files_are_shared_limited_and_given_back(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RandomAccessFile, "_recent", deque(maxlen=1))
    gc.collect()
    before = _open_files()
    pictures = open_pictures(packed)
    first = pictures.open(FIRST)
    assert pictures.open(FIRST) is first
    for _ in range(2):
        for number in (0, 1):
            pictures.open(ShardId("train", number)).read(0)
            assert _open_files() == before + 1
    del pictures, first
    gc.collect()
    assert _open_files() == before


def test_a_shard_that_is_not_there_is_a_key_error(packed: Path) -> None:
    with pytest.raises(KeyError):
        open_pictures(packed).open(ShardId("val", 0))
    assert open_pictures(packed).shard_ids("val") == ()
