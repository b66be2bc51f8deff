"""Eight bits of a logit move no probability further than is stated, at any temperature to 8."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.codecs.logits8 import HOTTEST, Logits8, differences, grid_of, half_cell
from stillroom.errors import UserError
from stillroom.types import Row, View

ROWS = [Row(key=f"p{i}", view=View(x0=0, y0=0, x1=8, y1=8)) for i in range(9)]
TEMPERATURES = (1.0, 1.3, 2.0, 3.0, 4.0, 5.5, 8.0)


def kept(target: Tensor) -> Tensor:
    return Logits8().decode(Logits8().encode(target, ROWS[: len(target)], {}), {})


def moved(target: Tensor, temperature: float) -> float:
    """The largest change of a probability."""
    several = target.shape[1] > 1
    before, after = (
        (value / temperature).softmax(1) if several else (value / temperature).sigmoid()
        for value in (target.double(), kept(target).double())
    )
    return float((after - before).abs().max())


def drawn(channels: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn((4, channels, 64, 64), generator=generator) * scale


def test_half_cells_are_what_the_docstring_says():
    assert half_cell(False) == pytest.approx(0.0038, abs=5e-5)
    assert half_cell(True) == pytest.approx(0.0035, abs=5e-5)


@pytest.mark.parametrize("several", [False, True])
def test_the_grid_is_uniform_in_the_integral_of_the_largest_slope(several: bool):
    """Against numerical integration of the definition, over a fine table of temperatures."""
    away = np.linspace(0, 80, 80_001)
    largest = np.zeros_like(away)
    for t in np.linspace(1, HOTTEST, 2001):
        weight = np.exp(-away / t) if several else 1 / (1 + np.exp(-away / t))
        slope = weight / t if several else weight * (1 - weight) / t
        largest = np.maximum(largest, slope)
    integral = np.concatenate([[0], np.cumsum((largest[1:] + largest[:-1]) / 2 * 1e-3)])
    levels = 256 if several else 128
    if several:
        target = torch.tensor(-away)[None, None, None].repeat(1, 2, 1, 1).float()
        target[:, 0] = 0
        points = -np.unique(kept(target)[0, 1].numpy())[::-1]
    else:
        points = np.unique(kept(torch.tensor(away)[None, None, None].float()).numpy())
    assert len(points) == levels
    found = np.interp(points, away, integral)
    assert np.abs(found - 2 * half_cell(several) * np.arange(levels)).max() < 2e-4


@pytest.mark.parametrize("several", [False, True])
def test_a_level_is_how_many_edges_lie_below(several: bool):
    """At every edge, at the floats beside it, and over all sizes of a float."""
    grid = grid_of(several, torch.device("cpu"))
    edges = grid.edges[:-1]
    beside = [edges.nextafter(torch.full_like(edges, end)) for end in (0.0, math.inf)]
    away = torch.cat([torch.zeros(1), edges, *beside, torch.logspace(-45, 38, 100_000)])
    assert torch.equal(grid.levels(away), torch.bucketize(away, edges, out_int32=True))


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 40.0, 1000.0])
@pytest.mark.parametrize("channels", [1, 2, 3, 21])
def test_no_probability_moves_further_than_is_stated(channels: int, scale: float):
    bound = half_cell(channels > 1) * max(1, channels - 1) + 1e-6
    for temperature in TEMPERATURES:
        assert moved(drawn(channels, scale), temperature) <= bound


@pytest.mark.parametrize("channels", [1, 2, 5, 21])
def test_the_worst_logits_come_near_the_bound_and_do_not_pass_it(channels: int):
    """All but the largest at one distance, which sweeps over every edge of a cell."""
    away = torch.linspace(0, 60, 40_000)
    if channels == 1:
        target = torch.cat([-away, away])[None, None, None]
    else:
        target = -away.expand(channels, -1)[None, :, None].clone()
        target[:, 0] = 0
    bound = half_cell(channels > 1) * max(1, channels - 1)
    found = max(moved(target, temperature) for temperature in TEMPERATURES)
    assert found <= bound + 1e-6
    assert found > (0.98 if channels <= 2 else 0.1) * bound


def test_the_likeliest_class_stays_and_the_largest_logit_is_that_of_float16():
    target = drawn(21, 5.0)
    decoded = kept(target)
    assert torch.equal(decoded.amax(1), target.amax(1).half().float())
    best = target.argmax(1, keepdim=True)
    assert torch.equal(decoded.gather(1, best), decoded.amax(1, keepdim=True))


def test_signs_stay():
    target = drawn(1, 3.0)
    assert torch.all(kept(target) * target >= 0)
    assert torch.equal(kept(-target), -kept(target))


def test_differences_are_undone_by_sums_modulo_256():
    level = torch.randint(-127, 256, (2, 3, 7, 9), dtype=torch.int16)
    packed = differences(level).numpy()
    assert np.array_equal(
        np.cumsum(np.cumsum(packed, 2, np.uint8), 3, np.uint8), level.numpy().astype(np.uint8)
    )
    assert packed[0, 0, 0, 0] == int(level[0, 0, 0, 0]) % 256


def test_far_logits_end_at_the_last_point():
    decoded = kept(torch.tensor([-1e4, -60.0, 60.0, 1e4])[None, None, None]).flatten()
    assert decoded[0] == decoded[1] == -decoded[2] == -decoded[3]
    assert 44 < float(decoded[3]) < 45


def test_a_largest_logit_past_float16_is_refused():
    with pytest.raises(UserError, match="float16"):
        kept(torch.full((1, 2, 2, 2), 1e6))
    with pytest.raises(UserError, match="float16"):
        kept(torch.full((1, 2, 2, 2), math.nan))
