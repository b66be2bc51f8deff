"""Stochastic rounding has the error that it is named for, and no bias."""

import pytest
import torch
from torch import Tensor

from stillroom.codecs.stochastic import Stochastic, expected_noise
from stillroom.errors import DamageError, UserError
from stillroom.types import Row, View

VIEW = View(x0=0, y0=0, x1=8, y1=8)


def rows(count: int, name: str = "p") -> list[Row]:
    return [Row(key=f"{name}{i}", view=VIEW) for i in range(count)]


def features(count: int, channels: int = 16, size: int = 16, seed: int = 0) -> Tensor:
    """Like those of a network with SiLU: most just below 0, few large; channels differ."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.2, 3, channels)[:, None, None]
    return torch.nn.functional.silu(
        torch.randn((count, channels, size, size), generator=generator) * scale - 1
    )


@pytest.mark.parametrize("error", [0.1, 0.3, 1.0, 3.1, 10.0, 100.0])
def test_the_relative_error_is_the_one_asked_for(error: float):
    codec, other = Stochastic(error=error), features(64, seed=1)
    fitted = codec.fit(features(64).split(8))
    assert fitted["offset"].shape == (16, 1, 1) and fitted["step"].shape == (1,)
    decoded = codec.decode(codec.encode(other, rows(64), fitted), fitted)
    energy = (other - fitted["offset"]).square().sum()
    found = float((decoded - other).square().sum() / energy)
    assert found == pytest.approx(error, rel=0.05)


def test_the_fit_knows_no_batches_and_large_rows_are_sampled():
    codec, values = Stochastic(error=1.0), features(6, channels=8, size=128)
    whole, pieces = codec.fit([values]), codec.fit(values.split(2))
    assert torch.equal(whole["step"], pieces["step"])
    assert torch.equal(whole["offset"], pieces["offset"])
    away = (values - whole["offset"]).flatten()
    noise = expected_noise(away, float(whole["step"])) / float(away.square().sum())
    assert noise == pytest.approx(1.0, rel=0.02)


def test_a_constant_added_to_a_channel_changes_the_offsets_only():
    values = features(16)
    moved = values + torch.arange(16)[:, None, None]
    plain, other = (Stochastic(error=1.0).fit([v]) for v in (values, moved))
    torch.testing.assert_close(other["step"], plain["step"], rtol=1e-3, atol=0)
    torch.testing.assert_close(
        other["offset"].flatten(), plain["offset"].flatten() + torch.arange(16)
    )


def test_offsets_are_medians():
    values = features(9)
    medians = values.transpose(0, 1).flatten(1).median(1).values
    assert torch.equal(Stochastic(error=1.0).fit([values])["offset"].flatten(), medians)


def test_what_never_changes_cannot_be_fitted():
    with pytest.raises(UserError, match="never changes"):
        Stochastic(error=1.0).fit([torch.ones(2, 3, 4, 4)])


def test_the_error_of_the_mean_of_many_draws_falls_and_that_of_nearest_rounding_does_not():
    codec, target = Stochastic(error=3.1), features(1)
    fitted = codec.fit([features(16, seed=2)])
    offset, step = fitted["offset"], fitted["step"]
    total, errors = torch.zeros_like(target[0]), {}
    for draw in range(1024):
        decoded = codec.decode(codec.encode(target, rows(1, f"d{draw}-"), fitted), fitted)
        total += decoded[0]
        errors[draw + 1] = float((total / (draw + 1) - target[0]).square().mean().sqrt())
    for count in (4, 16, 64, 256, 1024):
        assert errors[count] == pytest.approx(errors[1] / count**0.5, rel=0.1)
    nearest = offset + step * ((target[0] - offset) / step).round()
    assert float((nearest - target[0]).square().mean().sqrt()) > 5 * errors[1024]


def test_the_gradient_of_a_squared_error_is_that_of_the_target_on_average():
    """Of a linear map from a student's feature to the target, over rows of other keys."""
    codec, target = Stochastic(error=3.1), features(1)
    fitted = codec.fit([features(16, seed=2)])
    feature = torch.randn(5, 256, generator=torch.Generator().manual_seed(3))

    def gradient(values: Tensor) -> Tensor:
        return -2 * values.flatten(1) @ feature.T  # of |w f - t|^2 at w = 0

    exact, n = gradient(target[0]), 400
    many = codec.decode(codec.encode(target.expand(n, -1, -1, -1), rows(n, "g"), fitted), fitted)
    found = torch.stack([gradient(one) for one in many])
    spread = found.std(0) / n**0.5
    assert float(((found.mean(0) - exact) / spread).abs().max()) < 4.5  # of 80 numbers
    offset, step = fitted["offset"], fitted["step"]
    nearest = gradient(offset + step * ((target[0] - offset) / step).round())
    assert float(((nearest - exact) / spread).abs().max()) > 20


def test_a_row_far_from_all_that_was_fitted_is_refused_by_name():
    codec = Stochastic(error=1.0)
    fitted = codec.fit([features(8)])
    target = features(2)
    target[1] *= 1000
    with pytest.raises(UserError, match="p1") as refused:
        codec.encode(target, rows(2), fitted)
    assert "larger error" in str(refused.value)
    target[1] = 1e30
    with pytest.raises(UserError, match="p1"):
        codec.encode(target, rows(2), fitted)


def test_fitted_values_of_another_target_are_refused():
    codec = Stochastic(error=0.1)
    fitted = codec.fit([features(2)])
    parts = codec.encode(features(1), rows(1), fitted)
    for other in ({}, {"step": fitted["step"]}, {"offset": fitted["offset"]}):
        with pytest.raises(DamageError, match=r"codecs\.safetensors"):
            codec.decode(parts, other)
    with pytest.raises(DamageError):
        codec.decode(parts, {**fitted, "offset": torch.zeros(1 << 20, 1, 1)})


def test_two_and_a_half_times_the_usual_distance_has_room():
    codec = Stochastic(error=1.0)
    fitted = codec.fit([features(8)])
    target = fitted["offset"] + 2.5 * (features(1, seed=4) - fitted["offset"])
    assert torch.all(
        (codec.decode(codec.encode(target, rows(1), fitted), fitted) - target).abs()
        <= codec.error_bound(target, fitted)
    )
