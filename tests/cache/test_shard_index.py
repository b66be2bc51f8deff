"""A `shard.json` that verifies but says what cannot be is refused before anything is allocated."""

import pytest

from stillroom.cache import Cache
from stillroom.cache.shard_index import stated_by_shards
from stillroom.errors import DamageError
from stillroom.jsonfile import read_json, write_json
from stillroom.types import ShardId

TRAIN = ShardId("train", 0)


def forge(make, cache: Cache, member: str, column: str, row: int, value: object) -> None:
    """Rewrite shard.json with a valid checksum, as only a faulty writer or an enemy would."""
    path = make.folder(cache, TRAIN) / "shard.json"
    body = read_json(path)
    owner = body["rows"] if member == "rows" else body["parts"][member]
    owner[column][row] = value
    write_json(path, body)


@pytest.mark.parametrize("value", [2**64 - 1, 2**62, 10**30, -1, 1.5, True, None, "0", [0]])
@pytest.mark.parametrize("column", ["offset", "size", "crc32c"])
def test_an_index_entry_that_no_file_can_have_is_refused_at_opening(
    make, cache: Cache, column, value
):
    forge(make, cache, "mask.value", column, 2, value)
    with pytest.raises(DamageError, match="is not what"):
        cache.reader(TRAIN)


@pytest.mark.parametrize(("column", "value"), [("offset", 10**6), ("size", 10**4)])
def test_a_frame_outside_its_file_is_refused_at_opening(make, cache: Cache, column, value):
    forge(make, cache, "mask.value", column, 2, value)
    with pytest.raises(DamageError, match=r"part mask\.value, row 2"):
        cache.reader(TRAIN)


@pytest.mark.parametrize("column", ["offset", "size", "crc32c"])
def test_a_frame_in_another_place_is_noticed_when_it_is_read(make, cache: Cache, column):
    forge(make, cache, "mask.value", column, 2, 7)
    with pytest.raises(DamageError, match="crc32c"):
        cache.reader(TRAIN).read(2)


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
        ("pixels", -1),
        ("pixels", 1 << 32),
        ("pixels", 1.0),
        ("pixels", True),
        ("pixels", None),
        ("pixels", "0"),
    ],
)
def test_rows_that_cannot_be_are_refused_at_opening(make, cache: Cache, column, value):
    forge(make, cache, "rows", column, 2, value)
    with pytest.raises(DamageError):
        cache.reader(TRAIN)


@pytest.mark.parametrize("key", ["/etc/passwd", "a//b", "a/", "", "a.b", "a\n", "\u00e4"])
def test_keys_that_are_no_plain_relative_names_are_refused_at_opening(make, cache: Cache, key: str):
    forge(make, cache, "rows", "key", 0, key)
    with pytest.raises(DamageError, match=r"rows\.key"):
        cache.reader(TRAIN)


def test_swapped_keys_are_refused_at_opening(make, cache: Cache):
    forge(make, cache, "rows", "key", 2, "train-000000/003")
    forge(make, cache, "rows", "key", 3, "train-000000/002")
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
        ("detector", "error", -1e-9),
        ("detector", "error", None),
    ],
)
def test_figures_that_cannot_be_are_refused_at_opening(
    make, cache: Cache, target: str, column: str, value: object
):
    path = make.folder(cache, TRAIN) / "shard.json"
    body = read_json(path)
    body["statistics"][target][column][2] = value
    write_json(path, body)
    with pytest.raises(DamageError, match=r"`\$\.statistics|the confidence of"):
        cache.reader(TRAIN)


@pytest.mark.parametrize("missing", ["rows", "parts", "files", "statistics", "provenance"])
@pytest.mark.parametrize("value", [None, {}, [], 5])
def test_a_record_without_a_member_is_refused(make, cache: Cache, missing: str, value: object):
    path = make.folder(cache, TRAIN) / "shard.json"
    body = read_json(path)
    if missing == "provenance" and value == {}:
        return
    body[missing] = value
    write_json(path, body)
    with pytest.raises(DamageError):
        cache.reader(TRAIN)


def test_what_a_record_says_cannot_be_changed(cache: Cache):
    with cache.reader(TRAIN) as reader:
        index = reader.shard_index
        parts = ((index, "split"), (index.columns, "key"), (index.spans["mask.value"], "size"))
        for owner, name in parts:
            with pytest.raises(AttributeError, match="immutable"):
                setattr(owner, name, getattr(owner, name))


def test_paths_in_a_record_are_never_followed(make, cache: Cache):
    path = make.folder(cache, TRAIN) / "shard.json"
    body = read_json(path)
    body["files"]["../identity.json"] = body["files"].pop(next(iter(body["files"])))
    write_json(path, body)
    with pytest.raises(DamageError, match="files "):
        cache.reader(TRAIN)


def test_a_shard_that_is_a_stranger_s_or_damaged_does_not_speak_for_this_cache(tmp_path):
    (tmp_path / "0.zarr").mkdir()
    (tmp_path / "0.zarr" / "shard.json").write_text("{}")
    for folder, fingerprint, codecs in (("a.zarr", "0", "11"), ("b.zarr", "5", "22")):
        (tmp_path / folder).mkdir()
        body = {"fingerprint": fingerprint, "codecs_sha256": codecs}
        write_json(tmp_path / folder / "shard.json", body)
    assert stated_by_shards(tmp_path, "5") == ("5", "22")
    assert stated_by_shards(tmp_path, "7") == ("0", "11")
