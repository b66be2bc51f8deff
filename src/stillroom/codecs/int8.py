"""One byte a value: each channel of a row in 255 even steps, off by at most half a step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.errors import UserError
from stillroom.types import Row

_LARGEST = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8:
    """The nearest of 127 steps on either side of zero; the largest magnitude of a row's channel is
    127 steps. For terms that are not linear in their target. Text form: `int8`.
    """

    needs_fit: ClassVar[bool] = False
    is_noisy: ClassVar[bool] = False

    @classmethod
    def parse(cls, argument: str) -> "Int8":
        """Read what follows `int8:`, which must be nothing."""
        if argument:
            raise UserError("int8 takes no argument", found=argument, wanted="int8")
        return cls()

    @property
    def text(self) -> str:
        """The text form."""
        return "int8"

    def __str__(self) -> str:
        return self.text

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The steps of every value, and what a step is in each channel."""
        return {"value": ("int8", shape), "step": ("float32", (shape[0], 1, 1))}

    def fit(self, values: Iterable[Tensor]) -> dict[str, Tensor]:
        """Nothing is fitted: each row brings its own steps."""
        return {}

    def encode(
        self, target: Float[Tensor, "b c y x"], rows: Sequence[Row], fitted: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Round to the nearest step."""
        step = _steps(target)
        value = (target.float() / step.clamp_min(torch.finfo(torch.float32).tiny)).round_()
        return {"value": value.clamp_(-_LARGEST, _LARGEST).to(torch.int8), "step": step}

    def decode(
        self, parts: dict[str, Tensor], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b c y x"]:
        """Return value * step, fp32."""
        return parts["value"].float().mul_(parts["step"])

    def error_bound(
        self, target: Float[Tensor, "b c y x"], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b c y x"]:
        """Half a step of the value's channel, and 2^-16 of a step for what fp32 rounds off."""
        return _steps(target).mul_(0.5 + 2.0**-16).expand(target.shape)

    def promised_error(
        self, target: Float[Tensor, "b c y x"], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b"] | None:
        """The bound is the whole promise."""
        return None


def _steps(target: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c 1 1"]:
    """Return a step of each row and channel: 1/127 of its largest magnitude, as far as fp32 has it
    (2^-149 at least; a channel of smaller values is zero).
    """
    return target.float().abs().amax((2, 3), keepdim=True) / _LARGEST
