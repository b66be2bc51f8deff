"""Sparse whole numbers as bytes: the way from each unit to the next, and its sign.

A value of 2 is two units in one place. Features at relative errors from .3 to 30: zstd 1 makes of
these bytes 3 to 8 % more than the entropy of the values with a model per channel (at .1, 9 to 15 %;
`benchmarks/codecs.py`), of the values as bytes 54 to 108 %, of bit planes 3 to 77 %.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

FURTHEST = 127  # places that one byte can move on; 255 moves that far and puts nothing there


def pack_impulses(values: Int[Tensor, "n"], size: int) -> UInt8[Tensor, "{size}"] | None:
    """Return the values as bytes, with zeros after the last; None where they take more than `size`.

    A byte v of 1 to 254 moves on by (v - 1) >> 1 places from the last unit (at first from place 0)
    and puts a unit there, negative where v is even; 255 moves on by 127; 0 does nothing.
    """
    places = values.nonzero().flatten()
    heights = values[places]
    if int(heights.abs().sum(dtype=torch.int64)) > size:
        return None
    places = places.repeat_interleave(heights.abs())
    negative = (heights < 0).repeat_interleave(heights.abs())
    gaps = places.diff(prepend=places.new_zeros(1))
    ends = (gaps // FURTHEST + 1).cumsum(0)  # each gap's last byte is byte ends - 1
    used = int(ends[-1]) if len(ends) else 0
    if used > size:
        return None
    packed = torch.zeros(size, dtype=torch.uint8, device=values.device)
    packed[:used] = 255
    packed[ends - 1] = (1 + 2 * (gaps % FURTHEST) + negative).to(torch.uint8)
    return packed


def unpack_impulses(packed: UInt8[Tensor, "b size"], count: int) -> Float[Tensor, "b {count}"]:
    """Return `count` values of each row, fp32; whatever the bytes, nothing is written outside.

    On the CPU the zeros after the last unit are left out; a GPU would have to wait for their
    number, and adds them where they do nothing.
    """
    if packed.device.type == "cpu":
        packed = packed[:, : int((packed != 0).sum(1).max())]
    code = packed.int() - 1
    places = (code >> 1).clamp_(min=0).cumsum(1, dtype=torch.int32).clamp_(0, count - 1)
    units = (1 - 2 * (code & 1)).float()
    is_none = (packed == 0) | (packed == 255)
    # spread, because many additions to one place wait for each other
    spread = torch.arange(packed.shape[1], dtype=torch.int32, device=packed.device) % count
    places = torch.where(is_none, spread, places)
    units.masked_fill_(is_none, 0.0)
    values = torch.zeros((len(packed), count), device=packed.device)
    for row, place, unit in zip(values, places, units, strict=True):
        row.index_add_(0, place, unit)  # whole numbers, so the order does not matter
    return values
