"""What terms that compare an output of the student with what a teacher said have in common.

Every cell that is no padding counts, labelled or not, so pictures without labels are distilled too.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stillroom.losses import distances
from stillroom.losses.cells import inside_at, resized
from stillroom.losses.needs import Needs, Outputs, Sum
from stillroom.types import Batch

# output (b c y x) and target (b c y x) on one grid, and which of its cells are valid (b y x)
Pair = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnTarget:
    """What every such term has."""

    _is_linear: ClassVar[bool] = False  # `Needs.is_linear`

    target: str  # its name, as a teacher of the recipe makes it
    weight: float = 1.0  # of this term
    # where grids differ: brings the student's map to the teacher's grid, or the teacher's to the
    # student's, bilinearly; none: refused
    align: Literal["teacher", "student"] | None = None

    @property
    def needs(self) -> Needs:
        """Which output of the student is compared with the target."""
        raise NotImplementedError

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Cells of the target whose centre is no padding."""
        return self._weights(batch.targets[self.target], batch).sum(dtype=torch.float64)

    def _weights(self, target: Float[Tensor, "b c y x"], batch: Batch) -> Float[Tensor, "b y x"]:
        """Return what each cell of a target, as it is or resized, counts."""
        return inside_at(batch.inside, *target.shape[2:]).float()

    def _pair(self, outputs: Outputs, batch: Batch) -> Pair:
        """Return output and target on one grid, and which of its cells are valid."""
        output, target = outputs[self.needs.output], batch.targets[self.target]
        if self.align == "teacher":
            output = resized(output, batch.inside, _grid(target))
        if self.align == "student":
            target = resized(target, batch.inside, _grid(output))
        return output, target, inside_at(batch.inside, *_grid(target))

    def _sum(
        self, cells: Float[Tensor, "b y x"], target: Float[Tensor, "b c y x"], batch: Batch
    ) -> Sum:
        """Return the sum of cells by what they count; on the student's grid a picture counts what
        the cells of its target do, which `count` knows without a forward pass.
        """
        weights, stored = self._weights(target, batch), batch.targets[self.target]
        if _grid(target) != _grid(stored):
            wanted = self._weights(stored, batch).sum((1, 2))
            share = wanted / weights.sum((1, 2)).clamp_min(1e-12)
            weights = weights * share[:, None, None]
        return (cells * weights).sum()

    def _sum_of_squares(
        self, cells: Float[Tensor, "b y x"], target: Float[Tensor, "b c y x"], batch: Batch
    ) -> Sum:
        """Return the same of squared errors, less the noise that the target is known to have; the
        gradient does not know of it. What is left of it after a resize is not known.
        """
        total, noise = self._sum(cells, target, batch), batch.noise.get(self.target)
        if noise is None or _grid(target) != _grid(batch.targets[self.target]):
            return total
        return total - (noise * self._weights(target, batch).sum((1, 2))).sum()

    def _cosines(self, outputs: Outputs, batch: Batch, flatten: bool) -> Sum:
        """Return the sum of one minus the cosine: of cells by what they count, or, with `flatten`,
        of each picture's values as one vector.
        """
        output, target, valid = self._pair(outputs, batch)
        if flatten:
            return distances.picture_cosine(output, target, valid).sum()
        return self._sum(distances.cosine(output, target, valid), target, batch)

    def _num_pictures(self, batch: Batch) -> Float[Tensor, ""]:
        """Return how many pictures have a cell of the target that counts."""
        valid: Bool[Tensor, "b y x"] = inside_at(batch.inside, *_grid(batch.targets[self.target]))
        return valid.flatten(1).any(1).sum(dtype=torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnLogits(OnTarget):
    """What terms that compare logits have."""

    output: str = "logits"  # of the student: its logits, or a tap that is a head of its own

    @property
    def needs(self) -> Needs:
        """The teacher's logits, with the channels of the student's; a head may be compared with any
        target of its channels.
        """
        return logit_needs(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnFeature(OnTarget):
    """What terms that project a feature of the student have."""

    tap: str  # where the student's feature is taken: encoder.3, decoder.1
    hidden: int | None = 768  # channels between the projection's two layers; none: one layer

    @property
    def needs(self) -> Needs:
        """A tap with the cells of the target, projected to its width."""
        return Needs(
            target=self.target,
            tap=self.tap,
            hidden=self.hidden,
            align=self.align,
            is_linear=self._is_linear,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OnEither(OnLogits):
    """What terms have that compare logits, or, where a tap is named, features."""

    tap: str | None = None  # where the student's feature is taken; none: `output` is compared
    hidden: int | None = None  # channels between the projection's two layers; none: one layer

    @property
    def needs(self) -> Needs:
        """A tap, projected to the target's width, or logits of two channels or more."""
        return either_needs(self)


def logit_needs(term: OnLogits) -> Needs:
    """Return what a term on logits needs at least."""
    return Needs(
        target=term.target,
        kind="logits" if term.output == "logits" else None,
        head=term.output,
        align=term.align,
        is_linear=term._is_linear,
    )


def either_needs(term: OnEither) -> Needs:
    """Return what a term on logits or features needs at least."""
    if term.tap is None:
        return logit_needs(term)
    return Needs(target=term.target, tap=term.tap, hidden=term.hidden, align=term.align)


def _grid(values: Float[Tensor, "b c y x"]) -> tuple[int, int]:
    return values.shape[2], values.shape[3]
