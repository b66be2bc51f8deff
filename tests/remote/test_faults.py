"""A server that fails for a moment loses nothing; one that fails on is told in one paragraph."""

import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from stillroom.errors import FailureError, UserError
from stillroom.pictures.dataset import open_pictures
from stillroom.remote import store
from stillroom.remote.mirror import place_of
from stillroom.remote.store import Store


@pytest.mark.parametrize("faults", [[500, 503] * 2, ["cut"] * 2, [503, "cut", 500, "cut"]])
def test_failing_answers_are_asked_for_again(proxy, s3, pictures, upload, faults, tmp_path):
    upload(pictures.path, f"{s3.url}/shards")
    proxy.faults += faults
    read = open_pictures(place_of(f"{s3.url}/shards", str(tmp_path)))
    proxy.faults += faults
    assert read.open(read.shards[0].id).read(2).image[0, 0, 0] == 2
    assert proxy.spoilt == 2 * len(faults)


def test_a_large_file_comes_in_blocks_whatever_is_cut(proxy, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_BLOCK_BYTES", 1 << 16)
    data = bytes(range(256)) * 3000
    there = Store(f"{s3.url}/large")
    assert there.put("file", data)
    proxy.faults += ["cut", 503, "cut", 500, "cut"]
    there.download("file", tmp_path / "file", len(data), hashlib.sha256(data).hexdigest())
    assert (tmp_path / "file").read_bytes() == data


def test_an_answer_to_a_put_that_is_lost_makes_no_loser(proxy, s3, claim, write, tmp_path):
    cache = claim(place_of(f"{s3.url}/caches", str(tmp_path)))
    first = cache.shard_ids()[0]
    for faults in ([500, "cut", 503], ["cut"] * 6):
        proxy.faults += faults
    assert write(cache, first)
    assert cache.is_published(first)


def test_a_server_that_stays_away_is_told_in_one_paragraph(proxy, s3, pictures, upload, tmp_path):
    upload(pictures.path, f"{s3.url}/shards")
    read = open_pictures(place_of(f"{s3.url}/shards", str(tmp_path)))
    began = time.monotonic()
    proxy.faults += [503] * 1000
    with pytest.raises(FailureError, match="does not give or take train-000000") as told:
        read.open(read.shards[0].id)
    assert time.monotonic() - began < 30 and "nothing is lost" in str(told.value)
    proxy.faults.clear()
    assert read.open(read.shards[0].id).read(1).image[0, 0, 0] == 1


def test_a_bucket_that_is_not_there_is_the_user_s_mistake(s3, claim, tmp_path):
    with pytest.raises(UserError, match="there is no s3://nowhere"):
        claim(place_of("s3://nowhere-at-all/caches", str(tmp_path)))
    with pytest.raises(UserError, match="no dataset"):
        open_pictures(place_of("s3://nowhere-at-all/shards", str(tmp_path)))


@pytest.fixture
def mortal(s3, proxy, monkeypatch) -> Iterator[Any]:
    """A server of its own behind the proxy; it loses what it held when it is killed."""
    server = type(s3)()
    server.make_bucket("bucket")
    monkeypatch.setattr(proxy, "to", server.endpoint)
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_killed_in_mid_read_and_started_again_is_read_on(
    mortal, proxy, pictures, upload, tmp_path, monkeypatch
):
    monkeypatch.setattr(store, "PATIENCE_S", 60.0)
    upload(pictures.path, "s3://bucket/shards")
    read, found = open_pictures(place_of("s3://bucket/shards", str(tmp_path))), []
    mortal.kill()
    reader = threading.Thread(
        target=lambda: found.append(read.open(read.shards[1].id).read(0).image[0, 0, 0])
    )
    reader.start()
    time.sleep(1)
    assert not found
    proxy.to = "http://127.0.0.1:1"  # until the new process has all that the old one had
    mortal.start()
    mortal.make_bucket("bucket")
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", mortal.endpoint)
        upload(pictures.path, "s3://bucket/shards")
    proxy.to = mortal.endpoint
    reader.join(60)
    assert found == [3]


@pytest.mark.slow
def test_a_server_killed_in_mid_upload_leaves_no_half_shard(
    mortal, claim, write, tmp_path, monkeypatch
):
    monkeypatch.setattr(store, "PATIENCE_S", 3.0)
    cache, put, seen = claim(place_of("s3://bucket/caches", str(tmp_path))), Store.put, []

    def dying(there, name, data, **more):
        seen.append(name)
        if len(seen) == 3:
            mortal.kill()
        return put(there, name, data, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put", dying)
        with pytest.raises(FailureError, match="does not give or take"):
            write(cache, cache.shard_ids()[0])
    mortal.start()
    mortal.make_bucket("bucket")  # and empty: the server has forgotten all
    cache = claim(place_of("s3://bucket/caches", str(tmp_path)))
    assert len(cache.missing()) == 8
    for shard in cache.shard_ids():
        assert write(cache, shard)
    assert cache.finalize() and cache.is_complete
