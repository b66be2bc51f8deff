"""Whatever happens to stored bytes, opening, reading or the scrub says so and names the file.

Single bits: test_bit_flips.py. Records that verify and lie: test_shard_index.py.
"""

import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from stillroom.cache import Cache, open_cache, scrub_shard
from stillroom.errors import DamageError, StillroomError, UserError
from stillroom.jsonfile import read_json
from stillroom.types import ShardId

TRAIN, NEXT, VAL = ShardId("train", 0), ShardId("train", 1), ShardId("val", 0)
PAGE = 4096


def read_all(cache: Cache, shard_id: ShardId = TRAIN) -> list[np.ndarray]:
    with cache.reader(shard_id) as reader:
        return [value for i in range(len(reader)) for value in reader.read(i).values()]


def said_of(cache: Cache, shard_id: ShardId = TRAIN) -> str:
    """What opening, reading every row and scrubbing say; nothing where all is well."""
    texts = []
    try:
        fresh = open_cache(cache.path)
        texts += map(str, scrub_shard(fresh, shard_id))
        read_all(fresh, shard_id)
    except StillroomError as error:
        texts.append(str(error))
    return "\n".join(texts)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def units(cache: Cache, part: str, rows: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where the frames of rows begin and end, with all that belongs to each (header, checksum)."""
    with cache.reader(TRAIN) as reader:
        span = reader.shard_index.spans[part]
    places = [(span.offset[i], span.offset[i] + span.size[i]) for i in rows]
    if cache.body.suffix == ".wds":
        return [(start - 512, end + -end % 512) for start, end in places]
    return [(start, end + 4) for start, end in places]


def boundaries(cache: Cache, path: Path) -> list[int]:
    """Lengths at which a file could be cut: at every edge of what lies in it, and one byte off."""
    size = path.stat().st_size
    edges = {0, size // 2, size, size - 78, size - 4, size - 512, size - 1024}
    with cache.reader(TRAIN) as reader:
        num_rows, spans = len(reader), reader.shard_index.spans
    for part in cache.parts:
        if path.match(cache.body.file_of(part)):
            starts, sizes = spans[part.name].offset, spans[part.name].size
            edges |= {*starts, *(start + n for start, n in zip(starts, sizes, strict=True))}
            for start, end in units(cache, part.name, tuple(range(num_rows))):
                edges |= {start, end}
            edges.add(size - 4 - 16 * num_rows)
    near = {edge + step for edge in edges for step in (-1, 0, 1)}
    return sorted(length for length in near if 0 <= length < size)


@contextmanager
def restored(path: Path) -> Iterator[bytes]:
    """Give a file's bytes, and give them back to it afterwards."""
    data = path.read_bytes()
    yield data
    path.write_bytes(data)


def test_a_file_cut_at_any_boundary_is_noticed_and_named_when_the_shard_is_opened(
    cache: Cache, make
):
    num_cuts = 0
    for path in files_of(make.folder(cache, TRAIN)):
        lengths = boundaries(cache, path)
        with restored(path) as data:
            for length in lengths:
                path.write_bytes(data[:length])
                with pytest.raises(DamageError) as caught:
                    cache.reader(TRAIN)
                assert str(path) in str(caught.value)
                if path.name != "shard.json":
                    assert caught.value.found == f"{length} bytes"
                    assert caught.value.wanted == f"{len(data)} bytes"
                num_cuts += 1
            with pytest.raises(DamageError):
                cache.is_published(TRAIN)
    assert num_cuts > 60 and not said_of(cache)


def test_of_a_file_cut_under_an_open_reader_whole_rows_are_read_and_the_rest_is_an_error(
    cache: Cache, make
):
    """With files mapped into memory this would be a signal that Python cannot catch."""
    good = {i: cache.reader(TRAIN).read(i) for i in range(5)}
    for part in cache.parts:
        path = make.file(cache, TRAIN, part.name)
        lengths = boundaries(cache, path)
        with restored(path) as data:
            for length in lengths:
                path.write_bytes(data)
                with cache.reader(TRAIN) as reader:
                    span = reader.shard_index.spans[part.name]
                    path.write_bytes(data[:length])
                    for i in range(5):
                        if span.offset[i] + span.size[i] <= length:
                            read = reader.read(i, [part.name])[part.name]
                            assert np.array_equal(read, good[i][part.name])
                        else:
                            with pytest.raises(DamageError, match="ends early"):
                                reader.read(i, [part.name])


@pytest.mark.parametrize("garbage", [b"\0", b"x", bytes(1024), bytes(PAGE), b"PK\3\4" * 300])
def test_bytes_after_the_end_are_noticed_and_named(cache: Cache, make, garbage: bytes):
    for path in files_of(make.folder(cache, TRAIN)):
        with restored(path) as data:
            path.write_bytes(data + garbage)
            with pytest.raises(DamageError) as caught:
                cache.reader(TRAIN)
            assert str(path) in str(caught.value)


def test_a_missing_file_is_noticed_and_named(cache: Cache, make):
    for path in files_of(make.folder(cache, TRAIN)):
        with restored(path):
            path.unlink()
            assert str(path) in said_of(cache)
    for name, kind in (("identity.json", UserError), ("codecs.safetensors", UserError)):
        path = cache.path / name
        with restored(path):
            path.unlink()
            with pytest.raises(kind, match=name):
                open_cache(cache.path).reader(TRAIN)


def test_a_zeroed_page_anywhere_is_noticed_and_named(tmp_path: Path, make):
    targets = make.identity()["targets"]
    for target in targets.values():
        target["shape"] = [4, 20, 20]
    cache, num_pages = make.cache(tmp_path, targets=targets), 0
    assert cache.finalize() and not said_of(cache)
    paths = files_of(make.folder(cache, TRAIN))
    for path in [*paths, cache.path / "identity.json", cache.path / "codecs.safetensors"]:
        with restored(path) as data:
            for start in range(0, len(data), PAGE):
                page = data[start : start + PAGE]
                if page.strip(b"\0"):
                    path.write_bytes(data[:start] + bytes(len(page)) + data[start + len(page) :])
                    assert path.name in said_of(cache), (path, start)
                    num_pages += 1
    assert num_pages >= 12 and not said_of(cache)


def test_two_swapped_rows_are_noticed_by_the_reader_for_both(cache: Cache, make):
    sizes = [cache.reader(TRAIN).shard_index.spans["mask.value"].size[i] for i in range(5)]
    a, b = next((i, j) for i in range(5) for j in range(i) if sizes[i] == sizes[j])
    path = make.file(cache, TRAIN, "mask.value")
    (at, end_a), (bt, end_b) = units(cache, "mask.value", (a, b))
    with restored(path) as data:
        swapped = bytearray(data)
        swapped[at:end_a], swapped[bt:end_b] = data[bt:end_b], data[at:end_a]
        path.write_bytes(swapped)
        reader = cache.reader(TRAIN)
        for row in (a, b):
            with pytest.raises(DamageError, match="crc32c") as caught:
                reader.read(row)
            assert reader.rows[row].key in str(caught.value) and str(path) in str(caught.value)
        assert len(scrub_shard(cache, TRAIN)) >= 3  # the rows and the file's sha256
    assert not said_of(cache)


def test_swapped_shards_are_noticed(cache: Cache, make):
    first, second = (make.folder(cache, shard_id) for shard_id in (TRAIN, NEXT))
    first.rename(cache.path / "aside")
    second.rename(first)
    (cache.path / "aside").rename(second)
    for shard_id in (TRAIN, NEXT):
        with pytest.raises(DamageError, match="another shard"):
            cache.reader(shard_id)
        assert str(make.folder(cache, shard_id)) in said_of(cache, shard_id)


def test_a_foreign_shard_of_equal_shape_is_noticed(tmp_path: Path, cache: Cache, make):
    targets = make.identity()["targets"]
    targets["mask"]["teacher"]["weights_sha256"] = "00" * 32
    other = make.cache(tmp_path / "other", targets=targets)
    folder = make.folder(cache, TRAIN)
    shutil.rmtree(folder)
    shutil.copytree(make.folder(other, TRAIN), folder)
    with pytest.raises(DamageError, match="fingerprint differs"):
        cache.reader(TRAIN)
    assert str(folder) in said_of(cache)


def test_a_shard_in_the_other_body_is_not_taken_for_one(cache: Cache, make):
    other = {".zarr": ".wds", ".wds": ".zarr"}[cache.body.suffix]
    folder = make.folder(cache, TRAIN)
    folder.rename(folder.with_suffix(other))
    assert cache.missing() == (TRAIN,) and not cache.is_published(TRAIN)


def test_files_of_another_shard_are_noticed(cache: Cache, make):
    for part in cache.parts:
        path = make.file(cache, TRAIN, part.name)
        with restored(path):
            shutil.copyfile(make.file(cache, NEXT, part.name), path)
            with pytest.raises(DamageError):
                read_all(cache)
            assert str(path) in said_of(cache)


def test_an_older_record_or_body_of_the_same_shard_is_noticed(tmp_path: Path, cache: Cache, make):
    """As after a restore that brought back some of the files."""
    folder = make.folder(cache, TRAIN)
    shutil.copytree(folder, tmp_path / "older")
    cache.quarantine(TRAIN, "to be made again by a newer teacher's whim")
    newer = {ShardId("train", 0): ShardId("val", 0)}
    assert make.shard(cache, TRAIN, lambda cache, s, i: make.values(cache, newer[s], i))
    assert not said_of(cache)
    for path in files_of(folder):
        older = tmp_path / "older" / path.relative_to(folder)
        if older.read_bytes() == path.read_bytes():
            assert path.name == "zarr.json"
            continue
        with restored(path):
            shutil.copyfile(older, path)
            assert str(folder) in said_of(cache)
            with pytest.raises(DamageError):
                read_all(cache)
    assert not said_of(cache)


def test_other_fitted_values_are_noticed_and_named(cache: Cache):
    path = cache.path / "codecs.safetensors"
    path.write_bytes(struct.pack("<Q", 16) + b"{}" + b" " * 14)
    with pytest.raises(DamageError, match=r"codecs_sha256 differs(.|\n)*codecs\.safetensors"):
        open_cache(cache.path).reader(TRAIN)


def test_an_older_manifest_is_written_anew_and_none_means_incomplete(cache: Cache, make):
    assert not cache.is_complete and cache.finalize() and cache.is_complete
    path = cache.path / "manifest.json"
    older = path.read_bytes()
    cache.quarantine(TRAIN, "to be made again")
    assert not path.exists()
    newer = {ShardId("train", 0): ShardId("val", 0)}
    assert make.shard(cache, TRAIN, lambda cache, s, i: make.values(cache, newer[s], i))
    path.write_bytes(older)
    assert cache.finalize() and path.read_bytes() != older


def test_the_scrub_names_files_that_do_not_belong(cache: Cache, make):
    stranger = make.folder(cache, TRAIN) / "stranger"
    stranger.write_text("x")
    (problem,) = scrub_shard(cache, TRAIN)
    assert f"{stranger} does not belong" in str(problem)


def test_a_link_in_place_of_a_file_is_refused(cache: Cache, make):
    path = make.file(cache, TRAIN, "mask.value")
    path.rename(cache.path / "aside")
    path.symlink_to(cache.path / "aside")
    with pytest.raises(DamageError, match="another size") as caught:
        cache.reader(TRAIN)
    assert caught.value.found == "no file"


def test_a_file_in_place_of_a_folder_is_noticed_as_what_is_missing(cache: Cache, make):
    folder = make.file(cache, TRAIN, "mask.value").parent
    shutil.rmtree(folder)
    folder.write_bytes(b"")
    with pytest.raises(DamageError, match=r"is missing|there is no"):
        cache.reader(TRAIN)


def test_a_bad_shard_is_quarantined_and_made_again(cache: Cache, make):
    assert cache.finalize() and cache.is_complete
    make.file(cache, TRAIN, "mask.value").write_bytes(b"")
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
