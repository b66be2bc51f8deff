"""Int8 is off by at most half a step of the row's channel."""

import torch

from stillroom.codecs.int8 import Int8
from stillroom.types import Row, View

ROWS = [Row(key=f"p{i}", view=View(x0=0, y0=0, x1=8, y1=8)) for i in range(3)]


def test_int8_error_is_at_most_half_a_step_and_may_be_that():
    scale = torch.tensor([1e-6, 1.0, 300.0])[:, None, None, None]
    steps = torch.linspace(-127, 127, 4 * 127 + 1)  # every half step
    target = scale * steps.expand(3, 2, 1, -1)
    parts = Int8().encode(target, ROWS, {})
    error = (Int8().decode(parts, {}) - target).abs() / scale
    assert 0.499 < float(error.max()) < 0.5001
    assert torch.all(error * scale <= Int8().error_bound(target, {}))


def test_every_row_and_channel_has_its_own_step_and_keeps_its_extremes():
    target = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    target *= 10.0 ** torch.arange(12).view(3, 4, 1, 1).sub(6)
    parts = Int8().encode(target, ROWS, {})
    assert torch.equal(parts["step"], target.abs().amax((2, 3), keepdim=True) / 127)
    assert torch.all(parts["value"].abs().amax((2, 3)) == 127)
    relative = (Int8().decode(parts, {}) - target).abs().amax((2, 3)) / target.abs().amax((2, 3))
    assert float(relative.max()) < 0.5 / 127 * 1.001


def test_a_channel_of_zeros_or_of_nearly_nothing_is_finite():
    target = torch.zeros(1, 3, 2, 2)
    target[0, 1] = 1e-45
    target[0, 2, 0, 0] = 3e38
    decoded = Int8().decode(Int8().encode(target, ROWS[:1], {}), {})
    assert bool(decoded.isfinite().all()) and not decoded[0, :2].any()
    assert torch.all((decoded - target).abs() <= Int8().error_bound(target, {}).clamp_min(1e-45))
