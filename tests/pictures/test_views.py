"""What is drawn for a picture: a function of (seed, key, number) within what the flags say."""

from dataclasses import replace
from hashlib import blake2b
from math import inf, nan

import numpy as np
import pytest

from stillroom.errors import UserError
from stillroom.pictures.views import Views, num_views
from stillroom.types import View

SIZE, SHOWN = (256, 320), (0, 40, 320, 216)
WIDE = Views(count=400, scale=(0.25, 4.0), aspect=(0.5, 2.0))


def drawn(views: Views, size=SIZE, shown=SHOWN, key="a") -> list[View]:
    return [views.view(key, number, size, shown) for number in range(1, views.count)]


def share(seed: int, key: str, number: int, name: str) -> float:
    """53 bits of BLAKE2b as a number from [0, 1)."""
    text = f"view\0{seed}\0{key}\0{number}\0{name}".encode()
    return (int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 11) / 2**53


def test_a_view_is_what_its_definition_says():
    found = Views(seed=5).view("a", 3, SIZE, SHOWN)
    scale = 0.5 * 3 ** share(5, "a", 3, "scale")
    aspect = 0.8 * 1.5625 ** share(5, "a", 3, "aspect")
    width, height = int(320 * scale * aspect**0.5), int(256 * scale / aspect**0.5)
    assert (found.x1 - found.x0, found.y1 - found.y0) == (width, height)
    assert found.mirrored == (share(5, "a", 3, "mirror") < 0.5)
    spare = 176 - height
    down = int(share(5, "a", 3, "y") * (abs(spare) + 1))
    assert found.y0 == 40 + (down if spare > 0 else -down)


def test_views_are_the_same_on_every_machine():
    found = [Views().view("street/0001", n, (480, 640), (0, 0, 640, 480)) for n in range(1, 4)]
    assert [(v.number, v.x0, v.y0, v.x1, v.y1, v.mirrored) for v in found] == [
        (1, -155, -120, 737, 571, True),
        (2, 33, -3, 582, 482, True),
        (3, 50, 159, 471, 423, False),
    ]


def test_view_0_is_all_of_the_picture_and_the_others_differ():
    views = Views(count=50)
    assert views.view("a", 0, SIZE, SHOWN) == View(x0=0, y0=0, x1=320, y1=256)
    assert len(set(drawn(views))) == 49
    assert [view.number for view in drawn(views)] == list(range(1, 50))
    for other in (drawn(views, key="b"), drawn(replace(views, seed=1))):
        assert not set(other) & set(drawn(views))
    assert (num_views(views, "train"), num_views(views, "val")) == (50, 1)


def test_boxes_are_as_large_and_as_wide_as_was_asked_and_a_factor_is_as_likely_as_its_inverse():
    boxes = np.array([[v.x1 - v.x0, v.y1 - v.y0] for v in drawn(WIDE)]) / (320, 256)
    scales, aspects = np.sqrt(boxes.prod(1)), boxes[:, 0] / boxes[:, 1]
    for values, (low, high), step in ((scales, WIDE.scale, 0.98), (aspects, WIDE.aspect, 0.96)):
        assert low * step <= values.min() and values.max() <= high / step  # rounded to pixels
        logs = np.log(values) / np.log(high)
        assert abs(logs.mean()) < 0.1 and logs.std() == pytest.approx(3**-0.5, abs=0.05)
    assert 160 < sum(view.mirrored for view in drawn(WIDE)) < 240


@pytest.mark.parametrize("shown", [SHOWN, (100, 100, 108, 130)])
def test_a_box_lies_within_what_it_shows_or_around_it_and_everywhere_alike(shown):
    places = []
    for view in drawn(WIDE, shown=shown):
        for low, high, start, end in (
            (shown[0], shown[2], view.x0, view.x1),
            (shown[1], shown[3], view.y0, view.y1),
        ):
            spare = high - low - (end - start)
            assert min(low, high - (end - start)) <= start <= max(low, high - (end - start))
            if abs(spare) > 20:
                places.append((start - low) / spare)
    assert len(places) > 500
    assert np.mean(places) == pytest.approx(0.5, abs=0.04)
    assert np.std(places) == pytest.approx(12**-0.5, abs=0.03)


def test_a_scale_of_one_and_no_stretch_is_the_packed_size():
    for view in drawn(Views(count=20, scale=(1.0, 1.0), aspect=(1.0, 1.0)), shown=(0, 0, 320, 256)):
        assert (view.x0, view.y0, view.x1, view.y1) == (0, 0, 320, 256)


def test_a_share_of_none_or_all_is_none_or_all():
    assert not any(view.mirrored for view in drawn(replace(WIDE, mirror=0.0)))
    assert all(view.mirrored for view in drawn(replace(WIDE, mirror=1.0)))


@pytest.mark.parametrize("size", [(1, 1), (3, 2000)])
def test_small_pictures_have_boxes_of_a_pixel_at_least(size):
    for view in drawn(replace(WIDE, scale=(0.01, 0.02)), size=size, shown=(0, 0, *size[::-1])):
        assert view.x1 > view.x0 and view.y1 > view.y0


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 0},
        {"scale": (1.5, 0.5)},
        {"scale": (0.0, 1.0)},
        {"scale": (1.0, inf)},
        {"scale": (nan, 1.0)},
        {"aspect": (0.8, 11.0)},
        {"mirror": 1.5},
        {"mirror": nan},
    ],
)
def test_fields_that_cannot_be_are_refused_by_their_flag(fields):
    with pytest.raises(UserError, match=f"--views.{next(iter(fields))}"):
        Views(**fields)


def test_a_view_of_too_many_pixels_is_refused_before_it_is_made():
    size = (9_000, 9_000)
    whole = Views(count=2, scale=(1.0, 1.2)).view("a", 0, size, (0, 0, *size))
    assert whole.x1 == 9_000
    with pytest.raises(UserError, match="100 megapixels"):
        Views(count=2, scale=(1.0, 1.2)).view("a", 1, size, (0, 0, *size))
