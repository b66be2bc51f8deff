"""The terms of a training objective: each is a sum and a count, so that parts add up.

`count(batch)` needs no forward pass; `total(outputs, batch, progress)` is an fp32 sum of the same
things. The trainer divides by the global count. Labels are compared on labelled pixels (neither
void nor padding), what a teacher said on every pixel that is no padding, so pictures without labels
are distilled too.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stillroom.errors import UserError
from stillroom.losses import functions
from stillroom.losses.needs import Needs, Outputs, Sum
from stillroom.losses.schedules import Temperature
from stillroom.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy:
    """Cross entropy of several classes with the labels; pixels count with their class's weight."""

    label: ClassVar[str] = "ce"

    weight: float = 1.0  # of this term
    class_weights: tuple[float, ...] = ()  # one per class; none: all 1

    def __post_init__(self) -> None:
        if any(weight < 0 for weight in self.class_weights):
            raise UserError("class weights are not negative", found=self.class_weights)

    @property
    def needs(self) -> Needs:
        """Two channels or more; with class weights, one channel for each."""
        return Needs(min_channels=2, channels=len(self.class_weights) or None)

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Labelled pixels, each counted with the weight of its class."""
        valid = functions.labelled(batch.mask, batch.inside)
        if not self.class_weights:
            return valid.sum(dtype=torch.float64)
        weights = torch.tensor(self.class_weights, dtype=torch.float64, device=batch.mask.device)
        return weights[batch.mask.masked_fill(~valid, 0)].masked_fill(~valid, 0.0).sum()

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over labelled pixels."""
        logits = outputs["logits"]
        weights = (
            torch.tensor(self.class_weights, device=logits.device) if self.class_weights else None
        )
        valid = functions.labelled(batch.mask, batch.inside)
        return functions.cross_entropy(logits, batch.mask, valid, weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryCrossEntropy:
    """Cross entropy of each logit by itself with the labels.

    One channel: mask 1 is positive. Several: one class against the rest, mean over the channels.
    """

    label: ClassVar[str] = "bce"

    weight: float = 1.0  # of this term
    pos_weight: float = 1.0  # of a positive pixel; the count does not know it, as in torch

    def __post_init__(self) -> None:
        if not 0 < self.pos_weight < float("inf"):
            raise UserError("the weight of positive pixels is positive", found=self.pos_weight)

    @property
    def needs(self) -> Needs:
        """Labels, and the student's logits."""
        return Needs()

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Labelled pixels."""
        return functions.labelled(batch.mask, batch.inside).sum(dtype=torch.float64)

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over labelled pixels."""
        valid = functions.labelled(batch.mask, batch.inside)
        return functions.binary_cross_entropy(outputs["logits"], batch.mask, valid, self.pos_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dice:
    """Dice of each picture: of the foreground, or the mean over the classes present in its mask."""

    label: ClassVar[str] = "dice"

    weight: float = 1.0  # of this term
    smooth: float = 1e-5  # pixels added above and below the line

    def __post_init__(self) -> None:
        if not 0 < self.smooth < float("inf"):
            raise UserError("the smoothing of Dice is positive", found=self.smooth)

    @property
    def needs(self) -> Needs:
        """Labels, and the student's logits."""
        return Needs()

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Pictures with at least one labelled pixel."""
        valid = functions.labelled(batch.mask, batch.inside)
        return valid.flatten(1).any(1).sum(dtype=torch.float64)

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over pictures."""
        valid = functions.labelled(batch.mask, batch.inside)
        return functions.dice(outputs["logits"], batch.mask, valid, self.smooth)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnTarget:
    """What terms that read a target have in common: every cell that is no padding counts."""

    _is_linear: ClassVar[bool] = False  # `Needs.is_linear`

    target: str  # its name, as a teacher of the recipe makes it
    weight: float = 1.0  # of this term

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Cells of the target whose centre is no padding."""
        return self._cells(batch).sum(dtype=torch.float64)

    def _cells(self, batch: Batch) -> Bool[Tensor, "b y x"]:
        y, x = batch.targets[self.target].shape[2:]
        return functions.inside_at(batch.inside, y, x)

    def _squared_error(self, output: Float[Tensor, "b c y x"], batch: Batch) -> Sum:
        """Sum over cells of the mean over channels, less the noise that the target is known to
        have; the gradient does not know of it.
        """
        cells = self._cells(batch)
        total = functions.squared_error(output, batch.targets[self.target], cells)
        noise = batch.noise.get(self.target)
        return total if noise is None else total - (noise * cells.sum((1, 2))).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftKL(_OnTarget):
    """KL divergence of the student's logits from the teacher's at a temperature T, times T^2."""

    label: ClassVar[str] = "kl"

    temperature: Temperature = field(default_factory=Temperature)  # softens both

    @property
    def needs(self) -> Needs:
        """The teacher's logits, of the shape of the student's."""
        return Needs(target=self.target, kind="logits")

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over pixels; `progress` from 0 to 1 sets the temperature."""
        target, temperature = batch.targets[self.target], self.temperature.at(progress)
        return functions.soft_kl(outputs["logits"], target, self._cells(batch), temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitMSE(_OnTarget):
    """Squared difference of the student's logits from the teacher's."""

    label: ClassVar[str] = "logit_mse"
    _is_linear: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        """The teacher's logits, of the shape of the student's."""
        return Needs(target=self.target, kind="logits", is_linear=self._is_linear)

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over pixels of the mean over channels."""
        return self._squared_error(outputs["logits"], batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnFeature(_OnTarget):
    """What terms that project a feature of the student have in common."""

    tap: str  # where the student's feature is taken: encoder.3, decoder.1
    hidden: int | None = 768  # channels between the projection's two layers; none: one layer

    @property
    def needs(self) -> Needs:
        """A tap with the cells of the target, projected to its width."""
        return Needs(
            target=self.target, tap=self.tap, hidden=self.hidden, is_linear=self._is_linear
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMSE(_OnFeature):
    """Squared difference of a projected feature of the student from a feature of the teacher."""

    label: ClassVar[str] = "feature_mse"
    _is_linear: ClassVar[bool] = True

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over cells of the mean over channels."""
        return self._squared_error(outputs[self.needs.output], batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCosine(_OnFeature):
    """One minus the cosine of a projected feature of the student and a feature of the teacher."""

    label: ClassVar[str] = "feature_cosine"

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over cells."""
        output, target = outputs[self.needs.output], batch.targets[self.target]
        return functions.cosine_distance(output, target, self._cells(batch))
