"""A shard is published in a store by a pointer, which only the first writer puts."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from stillroom.cache import open_cache, remote_shards
from stillroom.checking.check import check_cache
from stillroom.checking.run_check import CheckOptions, run_check
from stillroom.errors import DamageError
from stillroom.remote.mirror import place_of
from stillroom.remote.store import Store


@pytest.fixture
def node(s3, tmp_path):
    """The mirror of the bucket's caches on some machine."""
    return lambda name: place_of(f"{s3.url}/caches", str(tmp_path / name))


def finish(cache, write):
    for shard in cache.shard_ids():
        assert write(cache, shard)
    assert cache.finalize()
    return cache


@pytest.mark.parametrize("body", ["zarr", "tar"])
def test_what_one_machine_writes_another_reads(node, claim, write, body):
    made = claim(node("one"), body)
    first, *others = made.shard_ids()
    assert len(made.missing()) == 8 and write(made, first)
    assert made.missing() == tuple(others) and not made.is_complete
    for shard in others:
        write(made, shard)
    assert made.finalize()
    (read,) = (open_cache(path) for path in [node("two") / made.path.name])
    assert read.is_complete and len(read) == 24
    assert [float(read[i].targets["said"].mean()) for i in range(24)] == list(range(24))
    assert read.shard_bytes(first) > 0


def test_plain_zarr_reads_a_cache_in_a_store(s3, node, claim, write):
    zarr = pytest.importorskip("zarr")
    from obstore.store import from_url

    cache = finish(claim(node("one")), write)
    names = Store(f"{s3.url}/caches/{cache.path.name}").names()[1]
    (folder,) = (name for name in names if name.startswith("train-000001."))
    client = {"client_options": {"allow_http": True}}
    there = from_url(f"{s3.url}/caches/{cache.path.name}/{folder}", **client)
    group = zarr.open_group(zarr.storage.ObjectStore(there, read_only=True), mode="r")
    assert np.unique(group["said.value"][:]).tolist() == [3, 4, 5]


def test_the_first_of_two_writers_wins_and_the_other_upload_is_garbage(s3, node, claim, write):
    one, two = claim(node("one")), claim(node("two"))
    first = one.shard_ids()[0]
    assert write(one, first) and not write(two, first)
    there = Store(f"{s3.url}/caches/{one.path.name}")
    uploads = [name for name in there.names()[1] if name.startswith("train-000000.")]
    digests = {bytes(there.get(f"{name}/said.value/c/0/0/0/0") or b"") for name in uploads}
    assert len(uploads) == 2 and len(digests) == 1
    assert len(one.shards.garbage()) == 1
    removed = one.shards.remove_garbage()
    assert [name for name in there.names()[1] if name.startswith("train-")] == [
        name for name in uploads if not removed[0].endswith(name)
    ]
    assert two[0].key == "p000"


def test_an_upload_without_a_pointer_is_no_shard_and_garbage_after_a_day(
    node, claim, write, monkeypatch
):
    cache, put = claim(node("one")), Store.put
    first = cache.shard_ids()[0]

    def killed(there: Store, name: str, data: bytes | Path, **more) -> bool:
        if name == "train-000000.json":
            raise KeyboardInterrupt
        return put(there, name, data, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Store, "put", killed)
        write(cache, first)
    assert first in cache.missing() and not cache.is_published(first)
    assert cache.shards.garbage() == []  # its writer may be alive
    monkeypatch.setattr(remote_shards, "_SILENT", timedelta(0))
    assert len(cache.shards.remove_garbage()) == 1 and cache.shards.garbage() == []


def test_a_flipped_bit_in_a_store_is_found_and_the_shard_set_aside(s3, node, claim, write):
    cache = finish(claim(node("one")), write)
    there = Store(f"{s3.url}/caches/{cache.path.name}")
    (folder,) = (name for name in there.names()[1] if name.startswith("train-000002."))
    name = f"{folder}/said.value/c/0/0/0/0"
    data = bytearray(there.get(name) or b"")
    data[5] ^= 1
    there.put(name, bytes(data))
    with pytest.raises(DamageError, match="sha256 differs"):
        open_cache(node("two") / cache.path.name).reader(cache.shard_ids()[2])
    # what lies on this machine is whole, and what the check reads is not that
    found = check_cache(cache.path)
    assert [str(problem.shard) for problem in found.problems] == ["train-000002"]
    result = run_check(node("one"), None, None, CheckOptions(repair=True, gc=True))
    assert "quarantine/train-000002" in result.repaired[0] and not result.removed
    assert cache.missing() == (cache.shard_ids()[2],)
    assert write(cache, cache.shard_ids()[2]) and cache.finalize()
    assert check_cache(cache.path).is_well
