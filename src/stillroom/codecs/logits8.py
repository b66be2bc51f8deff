"""Logits in one byte: a grid on which equal steps move a probability equally far.

What a change of a logit does to a probability depends on the temperature T. Of several channels, a
logit that lies a below its pixel's largest has the weight exp(-a / T), which changes with a by
exp(-a / T) / T: at most g(a), the largest over T from 1 to 8. The grid is uniform in G(a), the
integral of g from 0 to a, so whatever lies within half a cell of one of its points has a weight
within half a cell, at all these temperatures. One channel: the same with the sigmoid of logit / T
and the distance a from 0.

What is kept are second differences along x and y, which zstd packs to less than two thirds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float, Int16, Int32, UInt8
from torch import Tensor

from stillroom.codecs.float16 import Float16
from stillroom.errors import UserError
from stillroom.types import Row

HOTTEST = 8.0  # the grid is made for temperatures from 1 to this one
_KEY_BITS = 14  # of a float's 23 mantissa bits, those that a key leaves out
TURN = 1.5434046384182085  # x sigmoid'(x) is largest here, where x tanh(x / 2) = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits8:
    """The nearest grid point; of several channels, the pixel's largest logit beside it (float16).

    With h half a cell of the grid, a probability at a temperature from 1 to 8 moves by at most h =
    .0038 for one channel, and by at most (k - 1) h, h = .0035, for k channels. Text form:
    `logits8`.
    """

    needs_fit: ClassVar[bool] = False
    is_noisy: ClassVar[bool] = False

    @classmethod
    def parse(cls, argument: str) -> "Logits8":
        """Read what follows `logits8:`, which must be nothing."""
        if argument:
            raise UserError("logits8 takes no argument", found=argument, wanted="logits8")
        return cls()

    @property
    def text(self) -> str:
        """The text form."""
        return "logits8"

    def __str__(self) -> str:
        return self.text

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Differences of grid points, and of several channels the largest logit of each pixel."""
        parts = {"difference": ("uint8", shape)}
        return parts if shape[0] == 1 else {**parts, "peak": ("float16", (1, *shape[1:]))}

    def fit(self, values: Iterable[Tensor]) -> dict[str, Tensor]:
        """Nothing is fitted."""
        return {}

    def encode(
        self, target: Float[Tensor, "b k y x"], rows: Sequence[Row], fitted: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Round to the nearest grid point; raises UserError on logits that float16 cannot hold."""
        target, grid = target.float(), grid_of(target.shape[1] > 1, target.device)
        if target.shape[1] == 1:
            level = grid.levels(target.abs()).to(torch.int16) * target.sign().to(torch.int16)
            return {"difference": differences(level)}
        peak = target.amax(1, keepdim=True)
        level = grid.levels(peak - target).to(torch.int16)
        kept = Float16().encode(peak, rows, {})["value"]
        return {"difference": differences(level), "peak": kept}

    def decode(
        self, parts: dict[str, Tensor], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b k y x"]:
        """Return the grid points, fp32, below the largest of their pixel or on their side of 0."""
        level = parts["difference"].cumsum(3, dtype=torch.uint8).cumsum(2, dtype=torch.uint8)
        if "peak" in parts:
            points = grid_of(several=True, device=level.device).points
            return parts["peak"].float() - look_up(points, level.int())
        signed = level.view(torch.int8).int()
        points = grid_of(several=False, device=level.device).points
        return look_up(points, signed.abs()) * signed.sign()

    def error_bound(
        self, target: Float[Tensor, "b k y x"], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b k y x"]:
        """How far the value's cell reaches, without end beyond the last point (45 or so)."""
        target, several = target.float(), target.shape[1] > 1
        peak = target.amax(1, keepdim=True) if several else torch.zeros_like(target)
        away = (peak - target).abs()
        grid = grid_of(several, target.device)
        reach = torch.maximum(look_up(grid.reach, grid.levels(away)), away - grid.points[-1])
        bound = reach + away * 2.0**-20
        return bound + Float16().error_bound(peak, {}) if several else bound

    def promised_error(
        self, target: Float[Tensor, "b k y x"], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b"] | None:
        """The bound is the whole promise."""
        return None


def half_cell(several: bool) -> float:
    """Return how far at most a weight (several channels) or a probability (one) is moved."""
    return _whole(several) / (511 if several else 255)


def differences(level: Int16[Tensor, "b k y x"]) -> UInt8[Tensor, "b k y x"]:
    """Return the differences along x of the differences along y, modulo 256; before the first lies
    0.
    """
    level = level.diff(dim=2, prepend=level.new_zeros(level[:, :, :1].shape))
    level = level.diff(dim=3, prepend=level.new_zeros(level[..., :1].shape))
    return (level & 255).to(torch.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Points from 0 outwards, the edge beyond each (the last is infinite), and how far at most a
    cell reaches from its point.

    `by_key` is the level of the smallest number of each key, which is its exponent and the first 9
    bits of its mantissa: edges lie so far apart that no key has two.
    """

    points: Float[Tensor, "levels"]
    edges: Float[Tensor, "levels"]
    reach: Float[Tensor, "levels"]
    by_key: Int32[Tensor, "keys"]
    first_key: int

    def levels(self, away: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
        """Return how many edges lie below each: on a CPU a tenth of the time of a search."""
        key = (away.contiguous().view(torch.int32) >> _KEY_BITS).sub_(self.first_key)
        level = look_up(self.by_key, key.clamp_(0, len(self.by_key) - 1))
        return level.add_(away > look_up(self.edges, level))


def look_up(table: Tensor, index: Int32[Tensor, "*shape"]) -> Tensor:
    """Return table[index], which on a CPU takes ten times as long."""
    return table.index_select(0, index.flatten()).view(index.shape)


@lru_cache
def grid_of(several: bool, device: torch.device) -> Grid:
    """Return the grid of several channels (256 points) or of one (128, for both sides of 0)."""
    last, cell = (255, 2 * half_cell(True)) if several else (127, 2 * half_cell(False))
    inverse = _distance_several if several else _distance_one
    points = torch.tensor([inverse(level * cell) for level in range(last + 1)])
    edges = torch.tensor([inverse((level + 0.5) * cell) for level in range(last)])
    inner, outer = torch.cat([points[:1], edges]), torch.cat([edges, points[-1:]])
    first, final = (edges[[0, -1]].view(torch.int32) >> _KEY_BITS).tolist()
    keys = torch.arange(first, final + 2, dtype=torch.int32) << _KEY_BITS
    by_key = torch.bucketize(keys.view(torch.float32), edges, out_int32=True)
    assert int(by_key.diff().max()) == 1, "two edges in one key"
    return Grid(
        points=points.to(device),
        edges=torch.cat([edges, edges.new_tensor([math.inf])]).to(device),
        reach=torch.maximum(points - inner, outer - points).to(device),
        by_key=by_key.to(device),
        first_key=first,
    )


def _whole(several: bool) -> float:
    """G at infinity."""
    if several:
        return 1 + math.log(HOTTEST) / math.e
    return 0.5 + TURN * _slope(TURN) * math.log(HOTTEST)


def _distance_several(value: float) -> float:
    """Return the a of G(a); g is exp(-a), then 1 / (e a) from 1 on, then exp(-a / 8) / 8 from 8."""
    first = 1 - 1 / math.e
    second = first + math.log(HOTTEST) / math.e
    if value < first:
        return -math.log1p(-value)
    if value < second:
        return math.exp(math.e * (value - first))
    return -HOTTEST * math.log(second + 1 / math.e - value)


def _distance_one(value: float) -> float:
    """Return the a of G(a); g is sigmoid'(a), then c / a from TURN on, then sigmoid'(a / 8) / 8
    from 8 TURN, with c = TURN sigmoid'(TURN).
    """
    scale = TURN * _slope(TURN)
    first = _sigmoid(TURN) - 0.5
    second = first + scale * math.log(HOTTEST)
    if value < first:
        return _logit(0.5 + value)
    if value < second:
        return TURN * math.exp((value - first) / scale)
    return HOTTEST * _logit(value - second + _sigmoid(TURN))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _slope(x: float) -> float:
    return _sigmoid(x) * (1 - _sigmoid(x))


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)
