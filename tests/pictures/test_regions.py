"""The labels of a region: whose pixels, at which pixels, and what is void."""

from dataclasses import replace

import numpy as np
import pytest

from stillroom.errors import DamageError
from stillroom.pictures.dataset import Picture
from stillroom.pictures.loader import inside_array
from stillroom.pictures.rows import picture_of
from stillroom.pictures.run_lengths import from_run_lengths, run_lengths
from stillroom.types import IGNORE, Row, View

SIZE = (20, 30)


def packed(**changes) -> Picture:
    """The target on columns 4 to 9, another person on 10 to 14, a crowd on the last row."""
    one, two = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    one[2:18, 4:10], two[2:18, 10:15] = True, True
    mask = (one | two).astype(np.uint8)
    mask[19] = IGNORE
    extra = {
        "boxes": [[4, 2, 10, 18], [0, 0, 30, 20]],
        "instances": [run_lengths(one), run_lengths(two)],
    }
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    picture = Picture(key="a", image=image, mask=mask, inside=(0, 0, 30, 20), extra=extra)
    return replace(picture, **changes)


def row(region: int, **view) -> Row:
    box = {"x0": 0, "y0": 0, "x1": SIZE[1], "y1": SIZE[0]} | view
    return Row(key="a", region=region, view=View(**box))


def test_the_boxs_own_instance_is_1_and_others_are_2():
    seen = picture_of(packed(), row(0), SIZE, (4, 3))
    assert seen.box == (4, 2, 10, 18) and (seen.mask == 1).all()
    seen = picture_of(packed(), row(1), SIZE, SIZE)
    assert (seen.mask[2:18, 4:10] == 2).all() and (seen.mask[2:18, 10:15] == 1).all()
    assert (seen.mask[19] == IGNORE).all()
    assert (seen.mask[:2] == 0).all() and (seen.mask[:19, 15:] == 0).all()


def test_cells_take_the_pixel_in_which_their_centre_lies():
    seen = picture_of(packed(), row(1), SIZE, (10, 6))  # cells of 2 x 5 pixels
    assert seen.mask[1].tolist() == [0, 2, 1, 0, 0, 0]  # columns 2, 7, 12, ... of row 3
    assert seen.mask.shape == inside_array(seen).shape == (10, 6) and inside_array(seen).all()


def test_a_mirrored_view_of_twice_the_size_has_the_mirrored_labels():
    plain = picture_of(packed(), row(1), SIZE, SIZE)
    seen = picture_of(packed(), row(1, mirrored=True), (40, 60), SIZE)
    assert seen.box == (0, 0, 60, 40)
    assert np.array_equal(seen.mask, plain.mask[:, ::-1])


def test_of_a_crop_the_box_is_what_is_seen_of_it():
    seen = picture_of(packed(), row(0, x0=8, x1=28), SIZE, (16, 2))
    assert seen.box == (0, 2, 3, 18)  # two columns of the target are left, 30 / 20 times as wide
    assert (seen.mask == 1).all()


def test_what_lies_on_padding_is_not_inside():
    padded = packed(inside=(7, 0, 30, 20))
    seen = picture_of(padded, row(0), SIZE, (16, 6))
    assert seen.inside == (3, 0, 6, 16)
    assert (seen.mask[:, :3] == IGNORE).all() and (seen.mask[:, 3:] == 1).all()


@pytest.mark.parametrize(
    "changes", [{"mask": None}, {"extra": {"boxes": [[4, 2, 10, 18]]}}], ids=["mask", "instances"]
)
def test_without_mask_or_instances_a_region_is_void(changes):
    seen = picture_of(packed(**changes), row(0), SIZE, (4, 3))
    assert (seen.mask == IGNORE).all() and seen.mask.shape == (4, 3)


def test_without_a_grid_a_region_has_the_labels_of_the_picture():
    assert picture_of(packed(), row(0), SIZE).mask.shape == SIZE


@pytest.mark.parametrize("runs", [None, 7, [1, 2], [700, -100], [599.0, 1], "601", [[600]]])
def test_damaged_run_lengths_are_refused(runs):
    extra = {"boxes": [[4, 2, 10, 18]], "instances": [runs]}
    with pytest.raises(DamageError, match=r"instance 0 of a is damaged(.|\n)*20 x 30"):
        picture_of(packed(extra=extra), row(0), SIZE, (4, 3))
    with pytest.raises(DamageError, match="instance 1 of a"):
        extra = {"boxes": [[4, 2, 10, 18]] * 2, "instances": [[600]]}
        picture_of(packed(extra=extra), row(1), SIZE, (4, 3))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_run_lengths_come_back(share: float):
    mask = np.random.default_rng(1).random((7, 5)) < share
    assert np.array_equal(from_run_lengths(run_lengths(mask), 7, 5), mask)
