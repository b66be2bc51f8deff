"""More shards than files may be open: each index is read once, rows come back right at random."""

from collections import Counter, deque

import numpy as np
import pytest

from stillroom.cache import Cache, shard_index
from stillroom.pictures import dataset as picture_shards
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.random_access import Descriptor, RandomAccessFile
from stillroom.training.stream import RowDataset

SHARDS = 20


@pytest.fixture(scope="module")
def pictures(grey_world, tmp_path_factory) -> PictureSet:
    """Picture i is all grey level i."""
    return grey_world.pack_grey(tmp_path_factory.mktemp("many") / "shards", SHARDS)


@pytest.fixture(scope="module")
def cache(grey_world, pictures: PictureSet, tmp_path_factory) -> Cache:
    """Target of picture i is i in all cells."""
    cache = grey_world.claim_grey(pictures, tmp_path_factory.mktemp("many") / "cache")
    for shard in cache.shard_ids():
        grey_world.write_grey(pictures, cache, shard)
    return cache


def test_an_index_is_read_once_and_few_files_are_open_however_many_shards(
    pictures, cache, monkeypatch
):
    read, opened = Counter(), Counter()
    for module in (shard_index, picture_shards):
        plain = module.read_json_and_digest
        monkeypatch.setattr(
            module,
            "read_json_and_digest",
            lambda path, kind, plain=plain: read.update([path]) or plain(path, kind),
        )
    start = Descriptor.__init__
    monkeypatch.setattr(
        Descriptor, "__init__", lambda self, path: opened.update([path]) or start(self, path)
    )
    monkeypatch.setattr(RandomAccessFile, "_recent", deque(maxlen=5))
    dataset = RowDataset(open_pictures(pictures.path), "train", cache=cache, targets=("said",))
    for turn in range(2):
        for i in np.random.default_rng(turn).permutation(len(dataset)).tolist():
            key, arrays = dataset.read(i)
            assert key == f"p{i:03d}"
            assert set(arrays["image"].flat) == {i} and set(arrays["said.value"].flat) == {i}
        assert len(read) == 2 * SHARDS and set(read.values()) == {1}
        assert len(RandomAccessFile._recent) == 5
    assert opened.total() > len(opened) == 2 * SHARDS, "a file that was closed is opened again"
