"""What is kept of a target. A codec's text (`float16`) is its whole configuration.

A codec is a frozen dataclass equal to its text; fitted values (steps, bases) live apart, in
`codecs.safetensors`. A new one is one module here and one line in `CODECS`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from stillroom.codecs.float16 import Float16
from stillroom.codecs.int8 import Int8
from stillroom.codecs.logits8 import Logits8
from stillroom.codecs.stochastic import Stochastic
from stillroom.errors import UserError
from stillroom.types import Row


@runtime_checkable
class Codec(Protocol):
    """What stage 1 encodes and stage 2 decodes with, on whatever device the tensors are on."""

    needs_fit: ClassVar[bool]  # whether `fit` must see calibration rows before the first `encode`
    # whether what is decoded is right on average only, which is for terms that are linear in it
    is_noisy: ClassVar[bool]

    @property
    def text(self) -> str:
        """The text form that `parse_codec` reads."""
        ...

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return numpy's dtype name and the shape of one row per part; `shape` is (c, y, x)."""
        ...

    def fit(self, values: Iterable[Tensor]) -> dict[str, Tensor]:
        """Return fitted values from the calibration rows, in batches (b c y x)."""
        ...

    def encode(
        self, target: Float[Tensor, "b ..."], rows: Sequence[Row], fitted: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the parts, batch axis first; raises UserError on values that it cannot hold.

        What is drawn is a function of `Row.hash` and the value's index alone: equal whatever the
        batch, rank or device.
        """
        ...

    def decode(self, parts: dict[str, Tensor], fitted: dict[str, Tensor]) -> Float[Tensor, "b ..."]:
        """Return the target as fp32."""
        ...

    def error_bound(
        self, target: Float[Tensor, "b ..."], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b ..."]:
        """Return, per value, how far the decoded value may at most be from the target's."""
        ...

    def promised_error(
        self, target: Float[Tensor, "b ..."], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b"] | None:
        """Return, per row, the mean of (decoded - value)^2 that is promised on average over a
        shard; None where `error_bound` is the whole promise.
        """
        ...


CODECS: dict[str, type[Any]] = {
    "float16": Float16,
    "int8": Int8,
    "logits8": Logits8,
    "stochastic": Stochastic,
}


def parse_codec(text: str) -> Codec:
    """Return the codec that a text form names: `name` or `name:argument`. Raises UserError."""
    name, _, argument = text.partition(":")
    if name not in CODECS:
        raise UserError("no such codec", found=repr(text), wanted=" or ".join(CODECS))
    return CODECS[name].parse(argument)
