"""Which rows a picture shard has, and the picture of a row.

Both stages, the cache's expected row count and every check ask these two functions, so that a row
means the same to whoever writes, reads or doubts it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stillroom.pictures.boxes import Box, boxes_of
from stillroom.pictures.dataset import Picture, PictureSet, PictureShard
from stillroom.pictures.decode import PADDING_GREY
from stillroom.pictures.regions import with_region_labels
from stillroom.pictures.views import PixelBox, Views, ViewSource, num_views
from stillroom.types import IGNORE, Row, ShardId, View

_WHOLE = Views()


def rows_of(
    shard: PictureShard, views: ViewSource, *, regions: bool = False, first_only: bool = False
) -> tuple[Row, ...]:
    """Return the rows of a picture shard, ordered by key, region and view.

    With `regions` a picture has a row for each box that its json names, otherwise one for itself;
    with `first_only` it has view 0 alone.
    """
    numbers = range(1 if first_only else num_views(views, shard.info.split))
    return tuple(
        row_at(shard, i, region, views, number)
        for i in range(len(shard))
        for region in (range(shard.num_boxes[i]) if regions else (None,))
        for number in numbers
    )


def row_at(shard: PictureShard, i: int, region: int | None, views: ViewSource, number: int) -> Row:
    """Return the row that is view `number` of picture `i` of a shard, or of a region of it."""
    key = shard.keys[i]
    box = None if region is None else boxes_of(key, shard.extra(i))[region]
    view = views.view(key, number, shard.size(i), _shown(box, shard.inside(i)))
    return Row(key=key, region=region, view=view)


def places_of(
    pictures: PictureSet, split: str | None, *, regions: bool
) -> Iterator[tuple[ShardId, Row]]:
    """Yield the whole pictures of a split (None: of all), or their boxes, in order, each with its
    shard.
    """
    for shard in pictures.shard_ids(split):
        for row in rows_of(pictures.open(shard), _WHOLE, regions=regions, first_only=True):
            yield shard, row


def read_place(
    pictures: PictureSet,
    place: tuple[ShardId, Row],
    size: tuple[int, int] | None,
    regions: tuple[int, int] | None = None,
) -> Picture:
    """Return the picture of a row of a shard, labels included, as `picture_of` does; None is the
    size that it was packed at.
    """
    shard, row = pictures.open(place[0]), place[1]
    picture = shard.read(shard.index(row.key))
    height, width = picture.image.shape[:2]
    return picture_of(picture, row, size or (height, width), regions)


def whole_row(picture: Picture) -> Row:
    """Return the row that is a packed picture as it stands."""
    height, width = picture.image.shape[:2]
    return Row(key=picture.key, view=View(x0=0, y0=0, x1=width, y1=height))


def picture_of(
    picture: Picture, row: Row, size: tuple[int, int], regions: tuple[int, int] | None = None
) -> Picture:
    """Return the picture of a row at `size` (h, w): cropped, resized and mirrored as its view says.

    What lies outside the packed picture is grey, void and not inside. The picture is sampled
    bilinearly with antialiasing, its mask by nearest neighbour. `box` is that of the row's region;
    with `regions` (y, x) mask and `inside` are those of the region, on so many cells of its box.
    """
    if row.region is None or regions is None:
        return _seen_picture(picture, row, size)
    seen = _seen_picture(replace(picture, mask=None), row, size)
    return with_region_labels(seen, picture, row, regions, size)


def _seen_picture(picture: Picture, row: Row, size: tuple[int, int]) -> Picture:
    view, (height, width) = row.view, picture.image.shape[:2]
    box = None if row.region is None else boxes_of(picture.key, picture.extra)[row.region]
    if view == View(number=view.number, x0=0, y0=0, x1=width, y1=height) and size == (
        height,
        width,
    ):
        return replace(picture, box=box)
    return replace(
        picture,
        image=_sample(picture.image, view, size, PADDING_GREY, Image.Resampling.BILINEAR),
        mask=None
        if picture.mask is None
        else _sample(picture.mask, view, size, IGNORE, Image.Resampling.NEAREST),
        inside=_inside(picture.inside, view, size),
        box=None if box is None else _seen(box, view, size),
    )


def _sample(
    pixels: UInt8[np.ndarray, "h w *c"],
    view: View,
    size: tuple[int, int],
    outside: int,
    resampling: Image.Resampling,
) -> UInt8[np.ndarray, "y x *c"]:
    image = Image.fromarray(pixels)
    fill = (outside,) * len(image.getbands())
    canvas = Image.new(image.mode, (view.x1 - view.x0, view.y1 - view.y0), fill)
    canvas.paste(image, (-view.x0, -view.y0))
    sampled = canvas.resize((size[1], size[0]), resampling)
    return np.array(
        sampled.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.mirrored else sampled
    )


def _seen(box: Sequence[float | int], view: View, size: tuple[int, int]) -> Box:
    """Return a box of the packed picture in pixels of the view, clipped to it."""
    height, width = size
    across, down = width / (view.x1 - view.x0), height / (view.y1 - view.y0)
    left, right = ((x - view.x0) * across for x in box[::2])
    top, bottom = ((y - view.y0) * down for y in box[1::2])
    if view.mirrored:
        left, right = width - right, width - left
    sides = zip((left, top, right, bottom), (width, height, width, height), strict=True)
    x0, y0, x1, y1 = (float(min(max(value, 0), most)) for value, most in sides)
    return x0, y0, x1, y1


def _inside(box: PixelBox, view: View, size: tuple[int, int]) -> PixelBox:
    """Return the pixels of the view whose centres lie in a box, as nearest neighbour finds them."""
    seen = _seen(box, replace(view, mirrored=False), size)
    x0, y0, x1, y1 = (math.ceil(side - 0.5) for side in seen)
    return (size[1] - x1, y0, size[1] - x0, y1) if view.mirrored else (x0, y0, x1, y1)


def _shown(box: Box | None, inside: PixelBox) -> PixelBox:
    """Return the pixels of the picture that a region's box touches; all of them where none is."""
    if box is None:
        return inside
    x0, x1 = (min(max(x, inside[0]), inside[2]) for x in box[::2])
    y0, y1 = (min(max(y, inside[1]), inside[3]) for y in box[1::2])
    touched = (math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1))
    return touched if x0 < x1 and y0 < y1 else inside
