"""The two questions about rows: which there are, and what the picture of one looks like."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from stillroom.errors import DamageError
from stillroom.pictures.dataset import Picture, open_pictures
from stillroom.pictures.loader import inside_array
from stillroom.pictures.make import make_shards
from stillroom.pictures.rows import picture_of, rows_of
from stillroom.pictures.views import PixelBox, Views, ViewSource
from stillroom.types import Row, View

HEIGHT, WIDTH = 6, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Corners:
    """Two views: everything, and the lower right quarter, mirrored."""

    count: int = 2

    def view(self, key: str, number: int, size: tuple[int, int], shown: PixelBox) -> View:
        h, w = size
        if number == 0:
            return View(x0=0, y0=0, x1=w, y1=h)
        return View(number=1, x0=w // 2, y0=h // 2, x1=w, y1=h, mirrored=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "source").mkdir()
    for name in "ab":
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "source" / f"{name}.png")
    source = f"unlabelled:{folder / 'source'}"
    make_shards(source, out=folder / "train", size=(HEIGHT, WIDTH), format="png", val_share=0.0)
    return open_pictures(folder / "train")


def picture(**changes) -> Picture:
    """Every pixel of it tells where it lies: red is x, green is y; the mask is the row."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    image = np.stack([x * 20, y * 20, np.zeros_like(x)], 2)
    return Picture(key="a", image=image, mask=y, inside=(0, 0, WIDTH, HEIGHT), **changes)


def looked(view: View, size=(HEIGHT, WIDTH), region=None, **changes) -> Picture:
    return picture_of(picture(**changes), Row(key="a", region=region, view=view), size)


def test_a_whole_picture_is_one_row_and_comes_back_as_it_is(shards):
    shard = shards.open(shards.shard_ids()[0])
    whole = View(x0=0, y0=0, x1=WIDTH, y1=HEIGHT)
    assert rows_of(shard, Views()) == (Row(key="a", view=whole), Row(key="b", view=whole))
    assert np.array_equal(looked(whole).image, picture().image)
    assert isinstance(Views(), ViewSource) and isinstance(Corners(), ViewSource)


def test_rows_are_ordered_by_key_and_view(shards):
    shard = shards.open(shards.shard_ids()[0])
    rows = rows_of(shard, Corners())
    assert [(row.key, row.view.number) for row in rows] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert rows[1].view == View(number=1, x0=5, y0=3, x1=10, y1=6, mirrored=True)


def test_a_crop_of_its_own_size_is_the_pixels_of_the_picture():
    found = looked(View(number=1, x0=2, y0=1, x1=7, y1=5), size=(4, 5))
    assert np.array_equal(found.image, picture().image[1:5, 2:7])
    assert np.array_equal(found.mask, picture().mask[1:5, 2:7])
    assert found.inside == (0, 0, 5, 4)


def test_a_mirrored_view_turns_picture_mask_and_inside():
    view = View(number=1, x0=0, y0=0, x1=WIDTH, y1=HEIGHT, mirrored=True)
    found = picture_of(
        Picture(
            **{f: getattr(picture(), f) for f in ("key", "image", "mask")}, inside=(2, 0, 9, 6)
        ),
        Row(key="a", view=view),
        (HEIGHT, WIDTH),
    )
    assert np.array_equal(found.image, picture().image[:, ::-1])
    assert found.inside == (1, 0, 8, 6)


def test_width_and_height_are_not_exchanged():
    found = looked(View(number=1, x0=0, y0=0, x1=WIDTH, y1=HEIGHT // 2), size=(HEIGHT, WIDTH))
    assert found.image.shape == (HEIGHT, WIDTH, 3)
    assert found.mask.max() == 2  # the upper half alone, stretched downwards
    assert found.image[..., 0].max() == 180  # as wide as before


def test_what_lies_outside_the_picture_is_grey_void_and_not_inside():
    found = looked(View(number=1, x0=-2, y0=-1, x1=WIDTH, y1=HEIGHT), size=(7, 12))
    assert (found.image[0] == 128).all() and (found.image[:, :2] == 128).all()
    assert (found.mask[0] == 255).all() and (found.mask[:, :2] == 255).all()
    assert np.array_equal(found.image[1:, 2:], picture().image)
    assert found.inside == (2, 1, 12, 7)


def test_a_region_has_its_box_in_pixels_of_the_view():
    boxes = {"boxes": [[0, 0, 1, 1], [4, 2, 8, 5]]}
    view = View(number=1, x0=2, y0=1, x1=7, y1=5)
    assert looked(view, size=(8, 10), region=1, extra=boxes).box == (4.0, 2.0, 10.0, 8.0)
    mirrored = View(number=1, x0=2, y0=1, x1=7, y1=5, mirrored=True)
    assert looked(mirrored, size=(8, 10), region=1, extra=boxes).box == (0.0, 2.0, 6.0, 8.0)


PACKED, INSIDE, DRAWN = (96, 128), (0, 12, 128, 84), Views(count=60, scale=(0.5, 2.0))


def marked(place: tuple[int, int]) -> Picture:
    """Letterboxed: a bright block of 7 x 7 pixels, which mask and box name too."""
    x, y = place
    image = np.full((*PACKED, 3), 128, np.uint8)
    mask = np.full(PACKED, 255, np.uint8)
    image[12:84, :, :2], mask[12:84] = 40, 0  # blue is 128 everywhere but in the block
    image[y - 3 : y + 4, x - 3 : x + 4], mask[y - 3 : y + 4, x - 3 : x + 4] = 255, 1
    boxes = {"boxes": [[x - 3, y - 3, x + 4, y + 4]]}
    return Picture(key="a", image=image, mask=mask, inside=INSIDE, extra=boxes)


def centre(weights: np.ndarray) -> tuple[float, float]:
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return (x * weights).sum() / weights.sum(), (y * weights).sum() / weights.sum()


@pytest.mark.parametrize("size", [PACKED, (48, 64), (90, 40)])
def test_a_mark_comes_to_lie_in_the_same_place_in_picture_mask_and_box(size):
    seen, offs = 0, []
    for number in range(DRAWN.count):
        place = 10 + 37 * number % 108, 20 + 23 * number % 56
        view = DRAWN.view("a", number, PACKED, INSIDE)
        across = (place[0] + 0.5 - view.x0) / (view.x1 - view.x0) * size[1]
        down = (place[1] + 0.5 - view.y0) / (view.y1 - view.y0) * size[0]
        wanted = size[1] - across if view.mirrored else across, down
        if not (10 < wanted[0] < size[1] - 10 and 10 < wanted[1] < size[0] - 10):
            continue
        found = picture_of(marked(place), Row(key="a", region=0, view=view), size)
        x0, y0, x1, y1 = found.box
        light = found.image[..., 2].astype(float) - 128
        places = (centre(light), centre(found.mask == 1), ((x0 + x1) / 2, (y0 + y1) / 2))
        offs.append([np.subtract(place, wanted) for place in places])
        seen += 1
    offs = np.array(offs)
    assert seen > 15
    assert np.abs(offs[:, 0]).max() < 0.1 and np.abs(offs[:, 2]).max() < 1e-6
    assert (
        np.abs(offs[:, 1]).max() <= 0.75
    )  # nearest neighbour: half a cell, or half a source pixel
    assert np.abs(offs[:, 1].mean(0)).max() < 0.15  # and no shift on the whole


@pytest.mark.parametrize("size", [PACKED, (48, 64), (90, 40), (33, 51)])
def test_inside_is_exactly_where_the_mask_is_not_void_and_the_rest_is_grey(size):
    for number in range(DRAWN.count):
        view = DRAWN.view("a", number, PACKED, INSIDE)
        found = picture_of(marked((60, 50)), Row(key="a", view=view), size)
        assert np.array_equal(inside_array(found), found.mask != 255), view
        inside = np.pad(inside_array(found), 2)
        near = np.max(
            [np.roll(inside, (y, x), (0, 1)) for y in range(-2, 3) for x in range(-2, 3)], 0
        )
        assert (found.image[~near[2:-2, 2:-2]] == 128).all()


def test_regions_are_in_their_views_or_the_views_in_them(shards, monkeypatch):
    shard = open_pictures(shards.path).open(shards.shard_ids()[0])  # which keeps their number
    extra = {"boxes": [[0, 0, 2, 2], [4.5, 2, 8, 5], [-3, -3, 0, 0], [0, 0, math.inf, 9]]}
    monkeypatch.setattr(shard, "extra", lambda i: extra)
    rows = rows_of(shard, Views(count=30, scale=(0.2, 2.0)), regions=True)
    assert [row.region for row in rows[::30]] == [0, 1, 2, 3] * 2
    for row in rows:
        x0, y0, x1, y1 = [(0, 0, 2, 2), (4, 2, 8, 5), *[(0, 0, WIDTH, HEIGHT)] * 2][row.region]
        for low, high, start, end in (
            (x0, x1, row.view.x0, row.view.x1),
            (y0, y1, row.view.y0, row.view.y1),
        ):
            assert (
                row.view.number == 0
                or (start <= low and high <= end)
                or (low <= start and end <= high)
            )


def test_with_regions_a_picture_has_a_row_for_each_of_its_boxes(shards, monkeypatch):
    shard = open_pictures(shards.path).open(shards.shard_ids()[0])  # which keeps their number
    extras = [json.loads('{"boxes": [[0, 0, 1, 1], [4, 2, 8, 5]]}'), {}]
    monkeypatch.setattr(shard, "extra", lambda i: extras[i])
    rows = rows_of(shard, Views(), regions=True)
    assert [(row.key, row.region) for row in rows] == [("a", 0), ("a", 1)]


@pytest.mark.parametrize("boxes", [[[1, 2, 3]], [[3, 0, 1, 1]], ["x"], 5, [[0, 0, math.nan, 1]]])
def test_boxes_that_are_none_are_damage_and_name_the_picture(boxes):
    with pytest.raises(DamageError, match="boxes of a"):
        looked(View(x0=0, y0=0, x1=2, y1=2), region=0, extra={"boxes": boxes})
