"""What a term is: a loss that says what it needs, counts before the forward pass and sums after."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from stillroom.errors import UserError
from stillroom.types import Batch, Kind, TargetSpec

Outputs = dict[str, Float[Tensor, "b _ _ _"]]
Sum = Float[Tensor, ""]
Shape = tuple[int, int, int]
Align = Literal["teacher", "student", "labels"]  # the grid on which two maps are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a term reads besides labels, and which output of the student it compares with it."""

    target: str | None = None  # name of a cached target; None = labels only
    kind: Kind | None = None  # what that target must be; None = either
    head: str = "logits"  # the student's output: its logits, or another tap of it as it is
    # the student's feature, brought to the target's width by a projection; None = the head
    tap: str | None = None
    hidden: int | None = None  # channels between the projection's two layers; None = one layer
    align: Align | None = None  # where grids differ the term brings them to one; None = refused
    # whether the gradient is linear in the target, so that noise of mean zero averages out
    is_linear: bool = False
    # whether its count reads the target's numbers, not its shape alone: it is decoded for that too
    counts_target: bool = False
    min_channels: int = 1  # of the head
    channels: int | None = None  # of the head, exactly; None = any
    classes: int | None = None  # of the labels, exactly; None = any
    # the pixels of each class in the training masks, by `with_class_counts`, before the run begins
    class_counts: bool = False
    # channels of running class weights, which a step finds for all ranks and puts in the batch,
    # under the head's name; 0 = none
    class_weights: int = 0

    @property
    def output(self) -> str:
        """The name, among the distiller's outputs, of what is compared."""
        return self.head if self.tap is None else f"{self.tap}>{self.target}"


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
        """What the sum is divided by, float64, additive over pictures; needs no forward pass.

        Labels are there; pictures and targets have shapes and no numbers, unless the term says
        `counts_target`.
        """
        ...

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """The fp32 sum over a micro-batch, 0 where the count is 0; progress goes from 0 to 1."""
        ...


@runtime_checkable
class CountsClasses(Protocol):
    """What a term that says `class_counts` has besides."""

    def with_class_counts(self, counts: tuple[int, ...]) -> Term:
        """Return the term as it is trained, `counts` being the pixels of each class."""
        ...


@runtime_checkable
class FollowsClasses(Protocol):
    """What a term that says `class_weights` has besides."""

    def first_weights(self) -> tuple[float, ...]:
        """Return the weights before the first step."""
        ...

    def pixels(self, batch: Batch) -> Float[Tensor, "k"]:
        """Count the pixels of each class, float64, additive over pictures."""
        ...

    def next_weights(
        self, before: Float[Tensor, "k"], pixels: Float[Tensor, "k"]
    ) -> Float[Tensor, "k"]:
        """Return the weights of a step with so many pixels over all micro-batches and ranks."""
        ...


def require_head(term: Term, spec: TargetSpec | None, head: Shape, logits: Shape) -> None:
    """Raise UserError where a term does not fit the head (k, y, x) that it reads.

    `logits` are the student's main ones, on whose grid and for whose classes the labels are.
    """
    needs = term.needs
    owner = "the student's logits" if needs.head == "logits" else f"the head {needs.head}"
    wanted, fix = _misfit(needs, spec, head, logits), None
    grid = (logits if spec is None else spec.shape)[1:]
    if wanted is None and head[1:] != grid and needs.align is None:
        other = "labels are" if spec is None else f"{spec.name} is"
        wanted, fix = f"{other} on {grid[0]} x {grid[1]} cells", align_fix(spec)
    if wanted is not None:
        raise UserError(
            f"the term {term.label} does not fit {owner}",
            found=f"{owner} are {describe_shape(head)}",
            wanted=wanted,
            fix=fix,
        )


def _misfit(needs: Needs, spec: TargetSpec | None, head: Shape, logits: Shape) -> str | None:
    """Return what is wanted of a head's channels where it has others."""
    if spec is not None and (needs.kind not in (None, spec.kind) or spec.shape[0] != head[0]):
        return f"{spec.kind} {spec.name} are {describe_shape(spec.shape)}"
    if head[0] < needs.min_channels:
        return f"{needs.min_channels} channels or more; for one: BinaryCrossEntropy, Dice or Focal"
    wanted = needs.channels or (logits[0] if spec is None else None)
    if wanted is not None and max(2, head[0]) != max(2, wanted):
        return f"{wanted} channels"
    return None


def align_fix(spec: TargetSpec | None) -> str:
    """Return which option lets maps of different grids be compared."""
    if spec is None:
        return "--terms.N.align labels: the head is brought to the labels' grid"
    return "--terms.N.align teacher (or student): both are compared on the grid of that one"


def describe_shape(shape: Shape) -> str:
    """Return (c, y, x) in words."""
    return f"{shape[0]} channels on {shape[1]} x {shape[2]} cells"
