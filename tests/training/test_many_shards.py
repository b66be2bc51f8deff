"""More shards than files may be open: each index is read once, rows come back right at random."""

from collections import Counter, deque

import numpy as np
import pytest
from PIL import Image

from stillroom.cache import Cache, claim_cache, make_identity, shard_index
from stillroom.pictures import dataset as picture_shards
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.pictures.decode import encode_picture
from stillroom.pictures.pack import pack
from stillroom.pictures.pixels import pixels_crc32c
from stillroom.pictures.prepare import Geometry, Prepared
from stillroom.pictures.rows import whole_row
from stillroom.random_access import Descriptor, RandomAccessFile
from stillroom.training.stream import RowDataset
from stillroom.types import RowStatistics

SHARDS, ROWS, EDGE = 20, 3, 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> PictureSet:
    """Picture i is all grey level i."""
    out, inside = tmp_path_factory.mktemp("many") / "shards", (0, 0, EDGE, EDGE)
    rows = []
    for i in range(SHARDS * ROWS):
        grey = encode_picture(Image.new("RGB", (EDGE, EDGE), (i, i, i)), "png")
        packed = {"picture": grey, "mask": None, "extra": None, "inside": inside}
        rows.append(Prepared(key=f"p{i:03d}", height=EDGE, width=EDGE, **packed))
    geometry = Geometry(height=EDGE, width=EDGE, fit="stretch")
    of_set = {"classes": ("a", "b"), "geometry": geometry, "picture_format": "png"}
    pack(out, {"train": rows}, shard_rows=ROWS, **of_set)
    return open_pictures(out)


@pytest.fixture(scope="module")
def cache(pictures: PictureSet, tmp_path_factory) -> Cache:
    """Target of picture i is i in all cells."""
    names = ("split", "number", "rows", "pictures")
    shards = [{name: getattr(info, name) for name in names} for info in pictures.shards]
    said = {"teacher": {"class": "Fake"}, "shape": (1, 2, 2), "stride": 2, "kind": "features"}
    identity = make_identity(
        pictures={"digest": pictures.digest, "shards": shards},
        geometry=(EDGE, EDGE),
        views={"class": "Views", "count": 1, "regions": False},
        targets={"said": said | {"codec": "float16"}},
        calibration=[],
    )
    cache = claim_cache(tmp_path_factory.mktemp("many") / "cache", "many", identity)
    cache.publish_fitted({})
    for shard in cache.shard_ids():
        opened = pictures.open(shard)
        with cache.writer(shard) as writer:
            for picture in map(opened.read, range(ROWS)):
                value = np.full((1, 2, 2), picture.image[0, 0, 0], np.float16)
                figures = RowStatistics(0.0, 1.0, 1.0, None)
                crc = pixels_crc32c(picture)
                writer.append(whole_row(picture), {"said.value": value}, {"said": figures}, crc)
            writer.publish({})
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
