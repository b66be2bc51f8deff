"""What is appended is what is read, whatever the body."""

import errno
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillroom.cache import Cache, claim_cache, open_cache, scrub_shard
from stillroom.errors import DamageError, FailureError, UserError
from stillroom.types import Row, RowStatistics, ShardId, View

TRAIN = ShardId("train", 0)
COLUMNS = ("min", "max", "finite", "confidence", "error")


@pytest.mark.parametrize("codec", ["float16", "int8", "logits8", "stochastic:1.0"])
def test_every_row_is_read_as_it_was_written(tmp_path: Path, make, codec: str):
    cache = make.cache(tmp_path, codec=codec)
    for shard_id in cache.shard_ids():
        with cache.reader(shard_id) as reader:
            assert reader.provenance == {"device": "none"}
            assert tuple(reader.rows) == tuple(make.row(shard_id, i) for i in range(len(reader)))
            for i, row in enumerate(reader.rows):
                assert reader.index(row.key) == i
                said, read = make.values(cache, shard_id, i), reader.read(i)
                assert read.keys() == said.keys()
                for name, value in said.items():
                    assert read[name].dtype == value.dtype
                    assert np.array_equal(read[name], value)
                for target, figures in make.statistics(said).items():
                    columns = reader.shard_index.statistics[target]
                    assert tuple(getattr(columns, name)[i] for name in COLUMNS) == figures


def test_a_shard_is_on_the_disk_before_it_has_its_name(tmp_path: Path, make, is_durable):
    cache = make.cache(tmp_path)
    assert all(is_durable(make.folder(cache, shard_id)) for shard_id in cache.shard_ids())


def test_an_error_at_a_shard_s_beginning_is_the_one_that_is_told(cache: Cache, monkeypatch):
    def vanish(folder: Path, *_) -> None:
        folder.rmdir()
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(cache.body, "create", vanish, raising=True)
    with pytest.raises(OSError, match="the disk is gone"), cache.writer(TRAIN):
        raise AssertionError("nothing is written")
    assert not list((cache.path / "tmp").iterdir())


def test_only_wanted_parts_are_read_and_into_given_arrays(cache: Cache, make):
    reader = cache.reader(TRAIN)
    out = {"mask.value": np.empty((1, 4, 5), np.float16)}
    read = reader.read(2, ["mask.value"], out)
    assert read.keys() == {"mask.value"} and read["mask.value"] is out["mask.value"]
    assert np.array_equal(out["mask.value"], make.values(cache, TRAIN, 2)["mask.value"])


def test_a_row_of_zeros_is_stored_and_read(tmp_path: Path, make):
    def zeros(cache, shard_id, i):
        said = make.values(cache, shard_id, i)
        return {name: value * 0 if i == 1 else value for name, value in said.items()}

    cache = make.cache(tmp_path)
    cache.quarantine(TRAIN, "to be made of zeros")
    assert make.shard(cache, TRAIN, zeros)
    assert not scrub_shard(cache, TRAIN)
    assert not cache.reader(TRAIN).read(1)["detector.value"].any()
    assert cache.reader(TRAIN).read(2)["detector.value"].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, make, bad: float):
    cache = make.cache(tmp_path)
    said = make.values(cache, TRAIN, 0)
    figures = make.statistics(said)
    said["mask.value"][0, 1, 2] = bad
    cache.quarantine(TRAIN, "to be made again")
    with cache.writer(TRAIN) as writer, pytest.raises(UserError, match="not finite"):
        writer.append(make.row(TRAIN, 0), said, figures, pixels=0)
    said = make.values(cache, TRAIN, 0)
    with cache.writer(TRAIN) as writer, pytest.raises(UserError, match="not finite"):
        writer.append(
            make.row(TRAIN, 0),
            said,
            figures | {"mask": RowStatistics(0.0, 1.0, 0.5, 0.75)},
            pixels=0,
        )
    assert cache.missing() == (TRAIN,) and not list((cache.path / "tmp").iterdir())


def test_the_digest_of_what_was_shown_comes_back_with_the_row(cache):
    for shard_id in cache.shard_ids():
        found = list(cache.reader(shard_id).pixels)
        assert found == [2**32 - 1 - i for i in range(cache.shard_rows(shard_id))]


def test_a_shard_without_all_its_rows_is_not_published(tmp_path: Path, make):
    cache = make.cache(tmp_path)
    cache.quarantine(TRAIN, "to be made again")
    with cache.writer(TRAIN) as writer:
        said = make.values(cache, TRAIN, 0)
        writer.append(make.row(TRAIN, 0), said, make.statistics(said), pixels=0)
        with pytest.raises(FailureError, match="not whole"):
            writer.publish({})
    assert cache.missing() == (TRAIN,) and not list((cache.path / "tmp").iterdir())


def test_rows_out_of_order_are_a_fault_of_ours(tmp_path: Path, make):
    cache = make.cache(tmp_path)
    said = make.values(cache, TRAIN, 0)
    with cache.writer(TRAIN) as writer:
        writer.append(make.row(TRAIN, 1), said, make.statistics(said), pixels=0)
        for i in (0, 1):
            with pytest.raises(AssertionError, match="order"):
                writer.append(make.row(TRAIN, i), said, make.statistics(said), pixels=0)


def test_several_views_of_a_key_are_several_rows(tmp_path: Path, make):
    shards = [{"split": "train", "number": 7, "rows": 4, "pictures": "cd" * 32}]
    changes = {
        "pictures": {"digest": "ef" * 32, "shards": shards},
        "views": {"class": "Views", "count": 2, "regions": False},
    }
    shard_id = ShardId("train", 7)
    cache = claim_cache(tmp_path, "views", make.identity(**changes))
    cache.publish_fitted({})
    assert cache.shard_rows(shard_id) == 4
    views = [View(number=n, x0=n, y0=0, x1=40, y1=32, mirrored=n == 1) for n in (0, 1)]
    rows = [Row(key=key, view=view) for key in ("a", "b") for view in views]
    with cache.writer(shard_id) as writer:
        for i, row in enumerate(rows):
            said = make.values(cache, shard_id, i)
            writer.append(row, said, make.statistics(said), pixels=0)
        assert writer.publish({})
    reader = cache.reader(shard_id)
    assert tuple(reader.rows) == tuple(rows)
    assert [reader.index(row.key, view=row.view.number) for row in rows] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="no row for key 'c'"):
        reader.index("c")


@pytest.mark.parametrize("box", [(-4, -2, 36, 30), (3, 1, 44, 33)])
def test_a_view_may_pass_the_edges_of_its_picture(tmp_path: Path, make, box):
    cache = claim_cache(tmp_path, "edges", make.identity())
    cache.publish_fitted({})
    view = View(x0=box[0], y0=box[1], x1=box[2], y1=box[3])
    with cache.writer(TRAIN) as writer:
        for i in range(cache.shard_rows(TRAIN)):
            said = make.values(cache, TRAIN, i)
            writer.append(
                replace(make.row(TRAIN, i), view=view), said, make.statistics(said), pixels=0
            )
        assert writer.publish({})
    assert cache.reader(TRAIN).rows[0].view == view


def test_a_key_without_all_its_views_is_not_published(tmp_path: Path, make):
    shards = [{"split": "train", "number": 0, "rows": 4, "pictures": "cd" * 32}]
    pictures = {"digest": "ef" * 32, "shards": shards}
    views = {"class": "Views", "count": 2, "regions": False}
    cache = claim_cache(tmp_path, "views", make.identity(pictures=pictures, views=views))
    cache.publish_fitted({})
    with cache.writer(TRAIN) as writer:
        for i, (key, number) in enumerate((("a", 0), ("a", 1), ("b", 0), ("c", 0))):
            said = make.values(cache, TRAIN, i)
            row = Row(key=key, view=View(number=number, x0=0, y0=0, x1=40, y1=32))
            writer.append(row, said, make.statistics(said), pixels=0)
        with pytest.raises(DamageError, match="key b has 1 of 2 views"):
            writer.publish({})
    assert cache.missing() == (TRAIN,)


def test_rows_larger_than_a_block_are_checked_whole(tmp_path: Path, make):
    """256 KB are read and checked at a time; damage in the last piece must count."""
    target = make.identity()["targets"]["mask"] | {"shape": [1, 700, 640]}
    cache = make.cache(tmp_path, targets={"mask": target})
    reader = cache.reader(TRAIN)
    assert np.array_equal(reader.read(4)["mask.value"], make.values(cache, TRAIN, 4)["mask.value"])
    span = reader.shard_index.spans["mask.value"]
    assert span.size[4] > 3 << 18
    for position in (0, (1 << 18) - 1, 1 << 18, span.size[4] - 1):
        with make.file(cache, TRAIN, "mask.value").open("rb+") as file:
            file.seek(span.offset[4] + position)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 16]))
            file.flush()
            with pytest.raises(DamageError, match="crc32c"):
                reader.read(4)
            file.seek(-1, 1)
            file.write(bytes([byte]))
    reader.read(4)


def test_threads_share_a_reader(cache: Cache, make):
    reader, wrong = cache.reader(TRAIN), []

    def read(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for i in generator.integers(0, 5, 200):
            read = reader.read(int(i))
            if not np.array_equal(read["mask.value"], said[i]["mask.value"]):
                wrong.append(i)

    said = [make.values(cache, TRAIN, i) for i in range(5)]
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_closed_reader_says_so_and_an_absent_shard_is_named(cache: Cache):
    reader = cache.reader(TRAIN)
    reader.close()
    with pytest.raises(FailureError, match="closed"):
        reader.read(0)
    cache.quarantine(TRAIN, "gone")
    with pytest.raises(DamageError, match="train-000000"):
        cache.reader(TRAIN)


def test_the_writer_keeps_one_row_in_memory(tmp_path: Path, make):
    row_bytes = 64 * 64 * 64 * 2
    target = make.identity()["targets"]["detector"] | {"shape": [64, 64, 64]}
    shards = [{"split": "train", "number": 0, "rows": 24, "pictures": "cd" * 32}]
    cache_of = {
        "targets": {"detector": target},
        "pictures": {"digest": "ef" * 32, "shards": shards},
    }
    cache = claim_cache(tmp_path, "large", make.identity(**cache_of))
    cache.publish_fitted({})
    make.shard(cache, TRAIN)  # imports and first allocations
    cache.quarantine(TRAIN, "once more")
    tracemalloc.start()
    assert make.shard(cache, TRAIN)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # a row in float64 and float16 from the fake teacher, a frame and zstd's buffer: not 24 rows
    assert peak < 9 * row_bytes


def test_equal_rows_give_equal_bytes(tmp_path: Path, make):
    first, second = make.cache(tmp_path / "a"), make.cache(tmp_path / "b")
    assert first.finalize() and second.finalize()
    files = sorted(path.relative_to(first.path) for path in first.path.rglob("*.*"))
    assert len(files) >= 12
    for name in files:
        if (first.path / name).is_file():
            assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name


def test_opening_needs_only_the_identity(cache: Cache):
    again = open_cache(cache.path)
    assert again.fingerprint == cache.fingerprint and again.geometry == (32, 40)
    assert again.specs["detector"].shape == (3, 4, 5)
    assert again.shard_ids("val") == (ShardId("val", 0),)
    assert again.fitted == {"detector": {}, "mask": {}}
