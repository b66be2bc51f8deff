"""Light and colour change, places do not; the mirror is its own inverse."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from stillroom.pictures.augment import mirror, photometric


def _picture() -> np.ndarray:
    return np.random.default_rng(3).integers(40, 200, (12, 16, 3), np.uint8)


class _Drawn(np.random.Generator):
    """A generator that draws the factors it is told; only `uniform` is used."""

    def __init__(self, *factors: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.factors = factors

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        return np.array(self.factors)


def test_equal_generators_give_equal_pictures() -> None:
    first, second, other = (
        photometric(_picture(), 0.4, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()


def test_no_strength_changes_nothing() -> None:
    assert (photometric(_picture(), 0.0, np.random.default_rng(0)) == _picture()).all()


@pytest.mark.parametrize(
    ("factors", "enhance"),
    [((0.7, 1, 1), ImageEnhance.Brightness), ((1, 1, 0.4), ImageEnhance.Color)],
)
def test_each_change_is_that_of_pillow(factors: tuple, enhance: type) -> None:
    factor = next(factor for factor in factors if factor != 1)
    wanted = np.array(enhance(Image.fromarray(_picture())).enhance(factor))
    found = photometric(_picture(), 0.9, _Drawn(*factors))
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_brightness_scales_what_contrast_has_made() -> None:
    picture = _picture()
    grey = (picture.reshape(-1, 3).mean(0) * [0.299, 0.587, 0.114]).sum()
    found = photometric(picture, 0.9, _Drawn(0.6, 0.5, 1))
    assert np.abs(found - 0.6 * (grey + 0.5 * (picture - grey))).max() <= 0.51


def test_contrast_moves_pixels_away_from_the_mean_grey() -> None:
    picture = _picture()
    mean = (picture.reshape(-1, 3).mean(0) * [0.299, 0.587, 0.114]).sum()
    found = photometric(picture, 0.9, _Drawn(1, 0.5, 1))
    assert np.abs(found - (mean + 0.5 * (picture - mean))).max() <= 0.51


def test_results_are_clipped_not_wrapped() -> None:
    white = np.full((2, 2, 3), 250, np.uint8)
    assert (photometric(white, 0.9, _Drawn(1.9, 1, 1)) == 255).all()


def test_the_mirror_exchanges_left_and_right_of_pictures_and_masks() -> None:
    picture = _picture()
    assert (mirror(picture)[:, 0] == picture[:, -1]).all()
    assert (mirror(mirror(picture)) == picture).all()
    assert mirror(np.array([[1, 2, 3]])).tolist() == [[3, 2, 1]]
