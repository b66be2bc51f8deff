"""Float16 rounds as numpy does and refuses what it cannot hold."""

import math

import numpy as np
import pytest
import torch

from stillroom.codecs.float16 import Float16
from stillroom.errors import UserError
from stillroom.types import Row, View

ROWS = tuple(Row(key=f"p{i}", view=View(x0=0, y0=0, x1=8, y1=8)) for i in range(4))


def test_rounding_is_that_of_numpy():
    target = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1)) * 100
    parts = Float16().encode(target, ROWS, {})
    assert parts["value"].dtype == torch.float16
    assert np.array_equal(parts["value"].numpy(), target.numpy().astype(np.float16))
    decoded = Float16().decode(parts, {})
    assert decoded.dtype == torch.float32
    assert torch.all((decoded - target).abs() <= target.abs() * 2**-11 + 2**-25)


def test_the_largest_half_is_kept():
    target = torch.tensor([[65504.0, -65504.0]])
    assert torch.equal(Float16().decode(Float16().encode(target, ROWS, {}), {}), target)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 65505.0, -1e9])
def test_what_half_precision_cannot_hold_is_refused(value: float):
    target = torch.zeros(2, 3, 4, 4)
    target[1, 2, 3, 0] = value
    with pytest.raises(UserError, match="float16"):
        Float16().encode(target, ROWS, {})


def test_no_value_is_further_off_than_the_stated_bound_and_some_are_exactly_that_far():
    bits = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)  # all >= 0
    middles = (bits[:-1] + bits[1:]) / 2  # the worst there is between two neighbours; exact in fp32
    values = np.concatenate([bits, middles, np.nextafter(middles, 0), -middles]).astype(np.float32)
    target = torch.from_numpy(values)[None]
    bound = Float16().error_bound(target, {})
    error = (Float16().decode(Float16().encode(target, ROWS, {}), {}) - target).abs()
    assert bound.shape == target.shape and bound.dtype == torch.float32
    assert torch.all(error <= bound)
    is_power = torch.frexp(target.abs()).mantissa <= 0.5 + 2.0**-11  # just above a power of two
    assert torch.all((error / bound)[is_power & (error > 0)] > 0.999)
    assert float(bound.min()) == 2.0**-25
