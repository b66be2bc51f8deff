"""Light and colour change, places do not; the mirror is its own inverse."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from stillroom.pictures.augment import blur, gamma, hsv, jpeg, mirror, noise, photometric


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


@pytest.mark.parametrize(
    ("change", "strength"),
    [(hsv, (0.1, 0.7, 0.3)), (gamma, 0.3), (blur, 2.0), (noise, 0.1), (jpeg, 10)],
)
def test_every_other_change_is_a_function_of_the_generator_too(change, strength) -> None:
    found = [change(_picture(), strength, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any()
    assert found[0].flags.c_contiguous and (found[0] != _picture()).any()


@pytest.mark.parametrize("draws", [(0.0, 0.0, 0.0), (0.7, -0.4, 0.0), (-1.0, 1.0, -0.5)])
def test_hue_goes_round_and_saturation_and_value_are_clipped(draws) -> None:
    strengths, picture = np.array([0.4, 0.9, 0.6]), _picture()
    found = hsv(picture, tuple(strengths), _Drawn(*draws))
    for pixel, changed in zip(picture.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        h, s, v = np.array(colorsys.rgb_to_hsv(*(pixel / 255))) * (1 + np.array(draws) * strengths)
        wanted = np.array(colorsys.hsv_to_rgb(h % 1, min(s, 1), min(v, 1))) * 255
        assert np.abs(changed - wanted).max() < 8  # hue in 256 steps, twice rounded


@pytest.mark.parametrize("power", [0.8, 1.0, 1.2])
def test_gamma_raises_shares_to_the_power_that_was_drawn(power) -> None:
    found = gamma(_picture(), 0.2, _Drawn(power))
    assert np.abs(found - 255 * (_picture() / 255) ** power).max() <= 0.5


def test_a_blur_spreads_a_point_by_the_deviation_that_was_drawn() -> None:
    point = np.zeros((41, 41, 3), np.uint8)
    point[15:26, 15:26] = 255
    generator = np.random.default_rng(5)
    radius = np.random.default_rng(5).uniform(0, 4)
    found = blur(point, 4.0, generator)[..., 0].astype(float)
    x = np.arange(41) - 20
    before = (point[..., 0].sum(0) * x**2).sum() / point[..., 0].sum()
    after = (found.sum(0) * x**2).sum() / found.sum()
    assert radius > 1 and (after - before) ** 0.5 == pytest.approx(radius, rel=0.1)


def test_noise_has_the_deviation_that_was_drawn_and_no_mean() -> None:
    grey = np.full((100, 100, 3), 128, np.uint8)
    deviation = 255 * np.random.default_rng(7).uniform(0, 0.1)
    off = noise(grey, 0.1, np.random.default_rng(7)).astype(float) - 128
    assert off.std() == pytest.approx(deviation, rel=0.03) and abs(off.mean()) < 0.5


def test_noise_is_clipped_not_wrapped() -> None:
    white = noise(np.full((50, 50, 3), 255, np.uint8), 0.2, np.random.default_rng(7))
    assert white.min() > 100 and (white == 255).mean() > 0.4


def test_a_jpeg_is_that_of_the_quality_that_was_drawn() -> None:
    quality = int(np.random.default_rng(9).integers(30, 96))
    file = io.BytesIO()
    Image.fromarray(_picture()).save(file, "JPEG", quality=quality)
    assert (jpeg(_picture(), 30, np.random.default_rng(9)) == np.array(Image.open(file))).all()
    assert {int(np.random.default_rng(seed).integers(94, 96)) for seed in range(20)} == {94, 95}
