"""Other pixels than the teachers saw are refused, with the versions on both sides."""

from zlib import crc32

import numpy as np
import PIL
import pytest

from stillroom.errors import UserError
from stillroom.pictures.dataset import Picture
from stillroom.pictures.pixels import decoder_versions, pixels_crc32c, require_pixels
from stillroom.types import Row, View

ROW = Row(key="a", view=View(number=2, x0=0, y0=0, x1=4, y1=3))
CHECK = np.frombuffer(b"123456789" * 4, np.uint8).reshape(3, 4, 3)


def picture(image: np.ndarray = CHECK) -> Picture:
    return Picture(key="a", image=image, mask=None, inside=(0, 0, 4, 3))


def by_bits(data: bytes) -> int:
    """The Castagnoli polynomial, reflected, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_digest_is_the_castagnoli_checksum_of_the_rgb_bytes():
    assert by_bits(b"123456789") == 0xE3069283  # the published check value
    assert pixels_crc32c(picture()) == by_bits(CHECK.tobytes()) != crc32(CHECK.tobytes())


@pytest.mark.parametrize("place", [(0, 0, 0), (2, 3, 2), (1, 2, 1)])
def test_one_level_of_one_pixel_is_other_pixels(place):
    other = CHECK.copy()
    other[place] += 1
    wanted = pixels_crc32c(picture())
    require_pixels(picture(), ROW, wanted, {})
    with pytest.raises(UserError):
        require_pixels(picture(other), ROW, wanted, {})


def test_both_versions_are_named():
    provenance = {"versions": {"pillow": "9.1.0", "libjpeg": "2.1.3"}}
    with pytest.raises(UserError, match=r"a \(region None, view 2\)") as refused:
        require_pixels(picture(), ROW, 7, provenance)
    assert refused.value.wanted == "crc32c 00000007, by pillow 9.1.0, libjpeg 2.1.3"
    here = decoder_versions()
    assert here["pillow"] == PIL.__version__
    assert f"pillow {PIL.__version__}, libjpeg {here['libjpeg']}" in refused.value.found


@pytest.mark.parametrize(
    "versions", [None, 5, [], {}, {"pillow": None}, {"pillow": ["x" * 10**6]}, {"pillow": {}}]
)
def test_a_provenance_of_no_use_does_no_harm(versions):
    with pytest.raises(UserError, match="are not those") as refused:
        require_pixels(picture(), ROW, 7, {"versions": versions})
    assert len(refused.value.wanted) < 200
