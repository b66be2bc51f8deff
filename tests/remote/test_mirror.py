"""What of a store is on a machine: fetched once, whole, least recently used out, never half."""

import errno
import math
import multiprocessing
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stillroom.cache import find_caches, open_cache
from stillroom.cache.folder import Cache
from stillroom.errors import DamageError, FailureError, UserError
from stillroom.jsonfile import read_json
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.recipe import Augment
from stillroom.remote import store
from stillroom.remote.mirror import LOCAL_GB, MARKER, mirror_of, place_of
from stillroom.training.order import MicroBatchSchedule, Order, WindowOrder
from stillroom.training.prefetch import Prefetch
from stillroom.training.stream import RowDataset, training_batches


@pytest.fixture
def world(s3, pictures, claim, write, upload, tmp_path) -> str:
    """The URL of a bucket with `shards` and, copied from a disk, `cache`."""
    upload(pictures.path, f"{s3.url}/shards")
    cache = claim(tmp_path / "made")
    for shard in cache.shard_ids():
        write(cache, shard)
    cache.finalize()
    upload(tmp_path / "made", f"{s3.url}/cache")
    return s3.url


def opened(url: str, local: Path, gb: float = 50.0) -> tuple[PictureSet, Cache]:
    (cache,) = find_caches(place_of(f"{url}/cache", str(local), gb))
    return open_pictures(place_of(f"{url}/shards", str(local), gb)), cache


def values(dataset: RowDataset) -> list[float]:
    """What the teachers said of each row; a row is that of its picture or an error."""
    return [float(dataset.read(i)[1]["said.value"].mean()) for i in range(len(dataset))]


def dataset_of(pictures: PictureSet, cache: Cache) -> RowDataset:
    return RowDataset(pictures, "train", cache=cache, targets=("said",))


def test_opening_fetches_no_shard_and_reading_each_file_once(world, downloads, tmp_path):
    dataset = dataset_of(*opened(world, tmp_path / "local"))
    assert downloads == []
    assert values(dataset) == values(dataset) == list(range(24))
    names = [name for name, _ in downloads]
    assert len(names) == len(set(names)) and sum(name.endswith(".tar") for name in names) == 8


def read_all(url: str, local: str, gate, counted) -> None:
    fetched, plain = [], store.Store.download

    def download(self, name, *more):
        fetched.append(name)
        plain(self, name, *more)

    store.Store.download = download
    dataset = dataset_of(*opened(url, Path(local)))
    gate.wait()
    assert values(dataset) == list(range(24))
    counted.put(fetched)


@pytest.mark.slow
def test_two_processes_of_a_machine_fetch_each_file_once(world, tmp_path):
    context = multiprocessing.get_context("spawn")
    gate, counted = context.Barrier(2), context.Queue()
    words = (world, str(tmp_path / "local"), gate, counted)
    ranks = [context.Process(target=read_all, args=words) for _ in range(2)]
    for rank in ranks:
        rank.start()
    fetched = [name for _ in ranks for name in counted.get(timeout=90)]
    for rank in ranks:
        rank.join(30)
    assert len(fetched) == len(set(fetched)) == 8 + 8 * 3


def test_what_was_used_least_recently_goes_and_comes_again(world, downloads, tmp_path, monkeypatch):
    monkeypatch.setattr("stillroom.random_access._ASK_S", 0.0)
    limit_gb = 40e-6  # of 8 shards, each about 13 kB
    local = tmp_path / "local"
    pictures, cache = opened(world, local, limit_gb)
    dataset = dataset_of(pictures, cache)
    for _ in range(3):
        assert values(dataset) == list(range(24))
    kept = sum(
        f.stat().st_size for p in local.rglob("train-*") for f in [p, *p.rglob("*")] if f.is_file()
    )
    assert kept <= 40e3
    assert len(downloads) > 32, "the limit was never met"


def test_a_shard_that_goes_while_it_is_open_is_read_on(world, tmp_path):
    _, cache = opened(world, tmp_path / "local")
    shard = cache.shard_ids()[0]
    reader = cache.reader(shard)
    before = reader.read(0)["said.value"]
    cache.shards.fetch_again("train-000000.zarr")
    assert (reader.read(0)["said.value"] == before).all()
    reader.close()
    reader = cache.reader(shard)
    cache.shards._mirror.forget("train-000000.zarr")  # before its files were first opened
    assert (reader.read(0)["said.value"] == before).all()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "at", "is_open", "num_files"),
    [
        ("train-000001.tar", 530, True, 1),
        ("train-000001.tar", 530, False, 1),
        ("train-000001.json", 90, False, 0),
        ("train-000001.zarr/said.value/c/0/0/0/0", 5, True, 3),
        ("train-000001.zarr/shard.json", 90, False, 3),
    ],
)
def test_a_copy_that_is_damaged_is_fetched_again_once_and_that_is_said(
    world, downloads, tmp_path, capsys, name, at, is_open, num_files
):
    dataset = dataset_of(*opened(world, tmp_path / "local"))
    assert values(dataset) == list(range(24))
    flip(next((tmp_path / "local").rglob(name)), at)
    if not is_open:
        dataset = dataset_of(*opened(world, tmp_path / "local"))
    downloads.clear()
    assert values(dataset) == values(dataset) == list(range(24))
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"warning: the copy of {world}/") and "fetched again" in said
    assert len(downloads) == num_files


def test_where_the_store_is_damaged_too_it_is_damage(world, tmp_path):
    local = tmp_path / "local"
    dataset = dataset_of(*opened(world, local))
    assert values(dataset) == list(range(24))
    for name, at in (
        ("shards/train-000001.tar", 530),
        (f"cache/{dataset.cache.path.name}/train-000002.zarr/said.value/c/0/0/0/0", 5),
    ):
        folder, _, file = name.partition("train")
        flip(next(local.rglob(f"train{file}")), at)
        there = store.Store(f"{world}/{folder}")
        data = bytearray(there.get(f"train{file}") or b"")
        data[at] ^= 1
        there.put(f"train{file}", bytes(data))
    for i in (3, 6):
        with pytest.raises(DamageError, match=f"{world}/.*is not the file that was written"):
            dataset.read(i)


def test_bytes_that_are_not_those_of_the_set_are_refused(world, tmp_path):
    there = store.Store(f"{world}/shards")
    data = bytearray(there.get("train-000001.tar") or b"")
    data[600] ^= 1
    there.put("train-000001.tar", bytes(data))
    pictures, _ = opened(world, tmp_path / "local")
    with pytest.raises(DamageError, match=r"train-000001\.tar is not the file"):
        pictures.open(pictures.shards[1].id).read(0)
    assert not [
        p for p in (tmp_path / "local").rglob("train-000001.tar") if "fetching" not in p.parts
    ]
    there.put("train-000001.tar", bytes(data[:-1]))
    with pytest.raises(DamageError):
        pictures.open(pictures.shards[1].id).read(0)


def test_shards_of_what_lay_under_a_url_before_go(s3, tmp_path):
    folder, there = place_of(f"{s3.url}/shards", str(tmp_path)), store.Store(f"{s3.url}/shards")
    mirror = mirror_of(folder)
    assert mirror is not None
    for content, is_kept in ((b"one", True), (b"one", True), (b"two", False)):
        (folder / "train-000000.tar").write_bytes(b"of one")
        there.put("dataset.json", content)
        mirror.refresh("dataset.json")
        assert (folder / "train-000000.tar").exists() == is_kept


def test_a_command_that_says_no_limit_keeps_what_another_said(tmp_path):
    url = "s3://bucket/people"
    for given, wanted in ((None, LOCAL_GB), (800.0, 800.0), (None, 800.0), (2.0, 2.0)):
        place = place_of(url, str(tmp_path), given)
        assert read_json(place / MARKER)["limit_bytes"] == wanted * 1e9
    for given in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match=r"run\.local-gb"):
            place_of(url, str(tmp_path), given)


def test_a_full_disk_is_emptied_first_and_told_then(world, tmp_path, monkeypatch):
    pictures, _ = opened(world, tmp_path / "local")
    pictures.open(pictures.shards[0].id).read(0)
    plain, full = store.Store.download, [1]

    def download(self, name, *more):
        if full:
            full.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(self, name, *more)

    monkeypatch.setattr(store.Store, "download", download)
    pictures.open(pictures.shards[1].id).read(0)
    assert not list((tmp_path / "local").rglob("train-000000.tar"))
    full += [1, 1]
    with pytest.raises(FailureError, match="is full") as told:
        pictures.open(pictures.shards[2].id).read(0)
    assert "--run.local" in str(told.value)


@pytest.mark.parametrize(
    ("order", "least", "most"),
    [
        (WindowOrder(shard_rows=(3,) * 8, window=2, seed=0), 0.5, 1.1),
        (Order(rows=24, seed=0), 1.2, 3.0),
    ],
)
def test_with_a_window_each_shard_is_fetched_about_once_an_epoch(
    world, downloads, tmp_path, monkeypatch, order, least, most
):
    monkeypatch.setattr("stillroom.random_access._ASK_S", 0.0)
    pictures, cache = opened(world, tmp_path / "local", 80e-6)  # of 6 shards
    dataset, keys = dataset_of(pictures, cache), []
    schedule = MicroBatchSchedule(batch=1, micro_batch=1, rank=0, world=1)
    with Prefetch(dataset, order) as prefetch:
        for batch in training_batches(
            dataset, order, schedule, range(96), augment=Augment(), seed=0, workers=1, pin=False,
            before=prefetch.before,
        ):  # fmt: skip
            keys += batch.keys
    for epoch in range(4):
        part = keys[24 * epoch : 24 * epoch + 24]
        assert sorted(part) == [f"p{i:03d}" for i in range(24)]
    tars = sum(size for name, size in downloads if name.endswith(".tar"))
    assert least <= tars / (4 * sum(info.size for info in pictures.shards)) <= most


def test_a_cache_is_read_over_http_where_nothing_is_listed(world, pictures, tmp_path, monkeypatch):
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "made")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        name = next((tmp_path / "made").iterdir()).name
        url = f"http://127.0.0.1:{server.server_address[1]}/{name}"
        cache = open_cache(place_of(url, str(tmp_path / "local")))
        assert cache.is_complete and cache.path.name == name
        assert [float(cache[i].targets["said"].mean()) for i in range(24)] == list(range(24))
        with pytest.raises(UserError, match="can only be read"):
            cache.shards.put("audit.json", b"")
    finally:
        server.shutdown()
        server.server_close()
