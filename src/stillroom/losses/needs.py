"""What a term is: a loss that says what it needs, counts before the forward pass and sums after."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from stillroom.errors import UserError
from stillroom.types import Batch, Kind, TargetSpec

Outputs = dict[str, Float[Tensor, "b _ _ _"]]
Sum = Float[Tensor, ""]
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a term reads besides labels, and which output of the student it compares with it."""

    target: str | None = None  # name of a cached target; None = labels only
    kind: Kind | None = None  # what that target must be; None = either
    # the student's feature, brought to the target's width by a projection; None = its logits
    tap: str | None = None
    hidden: int | None = None  # channels between the projection's two layers; None = one layer
    # whether the gradient is linear in the target, so that noise of mean zero averages out
    is_linear: bool = False
    min_channels: int = 1  # of the student's logits
    channels: int | None = None  # of the student's logits, exactly; None = any

    @property
    def output(self) -> str:
        """The name, among the distiller's outputs, of what is compared."""
        return "logits" if self.tap is None else f"{self.tap}>{self.target}"


@runtime_checkable
class Term(Protocol):
    """One part of the loss: `weight * sum of totals / sum of counts`, over all micro-batches.

    A frozen dataclass, so that its fields are flags of the command line.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    label: ClassVar[str]  # its name in the log

    @property
    def weight(self) -> float:
        """Its share of the loss."""
        ...

    @property
    def needs(self) -> Needs:
        """What it reads."""
        ...

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """What the sum is divided by, float64, additive over pictures; needs no forward pass."""
        ...

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """The fp32 sum over a micro-batch, 0 where the count is 0; progress goes from 0 to 1."""
        ...


def require_channels(term: Term, spec: TargetSpec | None, logits: Shape) -> None:
    """Raise UserError where a term that compares logits does not fit logits of this (k, h, w)."""
    needs, wanted = term.needs, None
    if spec is not None and (needs.kind not in (None, spec.kind) or spec.shape != logits):
        wanted = f"{spec.kind} {spec.name} are {describe_shape(spec.shape)}"
    elif logits[0] < needs.min_channels:
        wanted = f"{needs.min_channels} channels or more; for one: BinaryCrossEntropy and Dice"
    elif needs.channels not in (None, logits[0]):
        wanted = f"{needs.channels} channels"
    if wanted is not None:
        raise UserError(
            f"the term {term.label} does not fit the student's logits",
            found=f"the student's logits are {describe_shape(logits)}",
            wanted=wanted,
        )


def describe_shape(shape: Shape) -> str:
    """Return (c, y, x) in words."""
    return f"{shape[0]} channels on {shape[1]} x {shape[2]} cells"
