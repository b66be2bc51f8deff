"""Shards of three tiny grey pictures each, and a cache in which the target of picture i is i."""

from pathlib import Path

import numpy as np
from PIL import Image

from stillroom.cache import Cache, claim_cache, make_identity
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.pictures.decode import encode_picture
from stillroom.pictures.pack import pack
from stillroom.pictures.pixels import pixels_crc32c
from stillroom.pictures.prepare import Geometry, Prepared
from stillroom.pictures.rows import whole_row
from stillroom.types import RowStatistics, ShardId

ROWS, EDGE = 3, 4


def pack_grey(out: Path, shards: int) -> PictureSet:
    """Train shards of pictures of 4 x 4 px; picture i is all grey level i."""
    rows = []
    for i in range(shards * ROWS):
        grey = encode_picture(Image.new("RGB", (EDGE, EDGE), (i, i, i)), "png")
        packed = {"picture": grey, "mask": None, "extra": None, "inside": (0, 0, EDGE, EDGE)}
        rows.append(Prepared(key=f"p{i:03d}", height=EDGE, width=EDGE, **packed))
    geometry = Geometry(height=EDGE, width=EDGE, fit="stretch")
    of_set = {"classes": ("a", "b"), "geometry": geometry, "picture_format": "png"}
    pack(out, {"train": rows}, shard_rows=ROWS, **of_set)
    return open_pictures(out)


def claim_grey(pictures: PictureSet, root: Path, body: str = "zarr") -> Cache:
    """A cache of these pictures in a folder, which may be a mirror; no shard is made."""
    names = ("split", "number", "rows", "pictures")
    shards = [{name: getattr(info, name) for name in names} for info in pictures.shards]
    said = {"teacher": {"class": "Fake"}, "shape": (1, 2, 2), "stride": 2, "kind": "features"}
    identity = make_identity(
        pictures={"digest": pictures.digest, "shards": shards},
        geometry=(EDGE, EDGE),
        views={"class": "Views", "count": 1, "regions": False},
        targets={"said": said | {"codec": "float16"}},
        calibration=[],
        body=body,
    )
    cache = claim_cache(root, "grey", identity)
    cache.publish_fitted({})
    return cache


def write_grey(pictures: PictureSet, cache: Cache, shard: ShardId) -> bool:
    """Write a shard, in which the target of picture i is i; whether it was the first."""
    opened = pictures.open(shard)
    with cache.writer(shard) as writer:
        for picture in map(opened.read, range(ROWS)):
            value = np.full((1, 2, 2), picture.image[0, 0, 0], np.float16)
            figures = RowStatistics(0.0, 1.0, 1.0, None)
            crc = pixels_crc32c(picture)
            writer.append(whole_row(picture), {"said.value": value}, {"said": figures}, crc)
        return writer.publish({})
