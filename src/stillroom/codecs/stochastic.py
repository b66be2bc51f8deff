"""One step for all channels of a target and unbiased rounding: noise that averages out of MSE.

The gradient of a squared error is linear in its target, so noise whose mean is zero moves no mean
gradient. Where the noise has as much energy as the signal, a value takes about one bit; at five
times as much, a third of one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillroom.codecs.impulses import pack_impulses, unpack_impulses
from stillroom.codecs.uniform import uniform
from stillroom.errors import DamageError, UserError
from stillroom.types import Row

LEAST, MOST = 0.1, 100.0
_SAMPLES = 1 << 16  # values of a calibration row that the fit looks at, evenly spaced


@dataclass(frozen=True, slots=True, kw_only=True)
class Stochastic:
    """offset[channel] + step * floor((x - offset[channel]) / step + u), u uniform in (0, 1).

    `error` is the relative error: the expected sum of (decoded - x)^2 over the calibration rows,
    divided by the sum of (x - offset[channel])^2 over the same values. What a constant explains is
    no signal. Text form: `stochastic:1.0`.
    """

    needs_fit: ClassVar[bool] = True
    is_noisy: ClassVar[bool] = True

    error: float

    def __post_init__(self) -> None:
        if not LEAST <= self.error <= MOST:
            raise UserError(
                "no such relative error of stochastic rounding",
                found=self.error,
                wanted=f"{LEAST} to {MOST:.0f}",
                fix="below it, int8 keeps features to about .0006 in half the bytes of float16",
            )

    @classmethod
    def parse(cls, argument: str) -> "Stochastic":
        """Read the relative error after `stochastic:`."""
        try:
            return cls(error=float(argument))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                "stochastic takes a relative error", found=repr(argument), wanted="stochastic:1.0"
            ) from None

    @property
    def text(self) -> str:
        """The text form."""
        return f"stochastic:{self.error}"

    def __str__(self) -> str:
        return self.text

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """One part of bytes: for every cell `2 c / (1 + error)`, rounded up.

        That is twice as many as an average row can have units. With u the mean of |x - offset| /
        step and v of (x - offset)^2, the noise error * v of a coarse step is u step^2 - v, and u
        step at most v^(1/2), so u <= 1 / (1 + error). Features with many small values have a third
        of that.
        """
        channels, *cells = shape
        return {"impulse": ("uint8", (math.ceil(2 * channels / (1 + self.error)), *cells))}

    def fit(self, values: Iterable[Tensor]) -> dict[str, Tensor]:
        """Return `offset` (c 1 1), each channel's median, and the `step` (1,) of this error.

        The median makes the mean distance least, of which there is one unit a step.
        """
        target, channels = _samples(values)
        num_channels = int(channels.max()) + 1
        medians = [target[channels == channel].median() for channel in range(num_channels)]
        offset = torch.stack(medians)
        away = target - offset[channels]
        if not bool(away.any()):
            raise UserError(
                "stochastic rounding cannot be fitted: the target never changes",
                found=f"{len(away)} values on the calibration rows",
                fix="check the teacher, or keep this target as float16",
            )
        step = _step_of(away, self.error * float(away.square().sum(dtype=torch.float64)))
        return {"offset": offset[:, None, None], "step": torch.tensor([step])}

    def encode(
        self, target: Float[Tensor, "b c y x"], rows: Sequence[Row], fitted: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Round up with the probability of the fraction, drawn per row and value.

        A value's mean is its own to 2^-24 of a step. Raises UserError for a row that has more than
        the room for it.
        """
        ((_, shape),) = self.parts(tuple(target.shape[1:])).values()
        scaled = ((target.float() - fitted["offset"]) / fitted["step"]).flatten(1)
        seeds = [row.hash("stochastic") for row in rows]
        whole = scaled.floor()
        up = uniform(seeds, scaled.shape[1], target.device) < scaled - whole
        whole += up
        packed = []
        for row, values in zip(rows, whole, strict=True):
            # what an int32 cannot hold takes more than the room as well
            bytes_ = pack_impulses(values.clamp(-(2.0**30), 2.0**30).int(), math.prod(shape))
            if bytes_ is None:
                raise self._no_room(row, values, math.prod(shape))
            packed.append(bytes_.view(shape))
        return {"impulse": torch.stack(packed)}

    def decode(
        self, parts: dict[str, Tensor], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b c y x"]:
        """Return offset + step * units, fp32; raises DamageError where the fitted values are not
        those of such a target.
        """
        packed, offset = parts["impulse"], fitted.get("offset", torch.zeros(0))
        shape = (len(offset), *packed.shape[2:])
        ((_, wanted),) = self.parts(shape).values()  # what follows is as large as `offset` is long
        if wanted != tuple(packed.shape[1:]) or "step" not in fitted:
            raise DamageError(
                f"codecs.safetensors does not hold what {self.text} needs",
                found=", ".join(f"{name} {list(value.shape)}" for name, value in fitted.items()),
                wanted="offset [channels, 1, 1], step [1]",
            )
        units = unpack_impulses(packed.flatten(1), math.prod(shape)).view(len(packed), *shape)
        return units.mul_(fitted["step"]).add_(offset)

    def error_bound(
        self, target: Float[Tensor, "b c y x"], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b c y x"]:
        """One step, and what fp32 may add: up to a value of the row, at most 2^-20 of it."""
        largest = target.abs() + fitted["offset"].abs()
        return largest.mul(2.0**-20).add_(fitted["step"] * (1 + 2.0**-16))

    def promised_error(
        self, target: Float[Tensor, "b c y x"], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b"] | None:
        """The relative error times the mean of (x - offset[channel])^2."""
        away = target.float() - fitted["offset"]
        return away.flatten(1).square().mean(1, dtype=torch.float64).mul(self.error)

    def _no_room(self, row: Row, values: Float[Tensor, "n"], size: int) -> UserError:
        units = float(values.abs().sum(dtype=torch.float64))
        return UserError(
            f"a row lies too far from those that {self.text} was fitted on: {row.key}",
            found=f"{units:.0f} steps in {values.numel()} values",
            wanted=f"at most {size}",
            fix="a larger error, or int8 or float16 for this target",
        )


def expected_noise(away: Float[Tensor, "n"], step: float) -> float:
    """Return the sum of the expected (decoded - x)^2: step^2 f (1 - f), f being the fraction."""
    scaled = away / step
    fraction = scaled - scaled.floor()
    return float((fraction * (1 - fraction)).sum(dtype=torch.float64)) * step**2


def _samples(values: Iterable[Tensor]) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """Return values of every row, evenly spaced over it, and their channels, on the CPU."""
    found, places = [], torch.zeros(0, dtype=torch.int64)
    channels, count = 0, 0
    for batch in values:
        flat = batch.float().flatten(1)
        channels, count = batch.shape[1], flat.shape[1]
        number = min(count, _SAMPLES)
        places = torch.arange(number) * count // number
        found.append(flat[:, places.to(flat.device)].cpu())
    kept = torch.cat(found)
    return kept.flatten(), (places // (count // channels)).repeat(len(kept))


def _step_of(away: Float[Tensor, "n"], noise: float) -> float:
    """Return the step of this expected noise, which grows with it."""
    low = high = float(away.abs().max())
    while expected_noise(away, low) > noise:
        low /= 2
    while expected_noise(away, high) < noise:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        if expected_noise(away, middle) < noise:
            low = middle
        else:
            high = middle
    return high
