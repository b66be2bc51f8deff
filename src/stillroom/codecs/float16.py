"""Half precision: two bytes a value, relative error at most 2^-11 for normal numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from stillroom.errors import UserError
from stillroom.types import Row

_LARGEST = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Float16:
    """The value rounded to half precision. Text form: `float16`."""

    needs_fit: ClassVar[bool] = False
    is_noisy: ClassVar[bool] = False

    @classmethod
    def parse(cls, argument: str) -> "Float16":
        """Read what follows `float16:`, which must be nothing."""
        if argument:
            raise UserError("float16 takes no argument", found=argument, wanted="float16")
        return cls()

    @property
    def text(self) -> str:
        """The text form."""
        return "float16"

    def __str__(self) -> str:
        return self.text

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """One part, of the target's own shape."""
        return {"value": ("float16", shape)}

    def fit(self, values: Iterable[Tensor]) -> dict[str, Tensor]:
        """Nothing is fitted."""
        return {}

    def encode(
        self, target: Float[Tensor, "b ..."], rows: Sequence[Row], fitted: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Round to half precision; raises UserError on NaN, infinity and magnitudes above 65504."""
        largest = float(target.abs().amax())
        if not largest <= _LARGEST:  # NaN compares false
            raise UserError(
                "a teacher's output does not fit into float16",
                found=f"largest magnitude {largest}",
                wanted=f"finite values up to {_LARGEST:.0f}",
                fix="check the teacher's weights and preprocessing",
            )
        return {"value": target.half()}

    def decode(self, parts: dict[str, Tensor], fitted: dict[str, Tensor]) -> Float[Tensor, "b ..."]:
        """Widen to fp32: exact."""
        return parts["value"].float()

    def error_bound(
        self, target: Float[Tensor, "b ..."], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b ..."]:
        """Half a unit in the last place: 2^-11 of the magnitude, and never less than 2^-25.

        A number in [2^e, 2^(e+1)) has neighbours 2^(e-10) apart, so rounding to the nearest moves
        it by at most 2^(e-11) <= 2^-11 of itself; below 2^-14 (subnormal) they are 2^-24 apart.
        """
        return target.float().abs().mul(2.0**-11).clamp_min(2.0**-25)

    def promised_error(
        self, target: Float[Tensor, "b ..."], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b"] | None:
        """The bound is the whole promise."""
        return None
