"""Terms that compare logits of the student with a teacher's."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.losses import distances
from stillroom.losses.cells import at_centres
from stillroom.losses.class_weights import (
    ClassWeights,
    balanced,
    check_weights,
    num_weights,
    vector,
)
from stillroom.losses.needs import Needs, Outputs, Sum
from stillroom.losses.schedules import Temperature
from stillroom.losses.target_terms import OnLogits, logit_needs
from stillroom.types import IGNORE, Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftKL(OnLogits):
    """KL divergence of the student's logits from the teacher's at a temperature T, times T^2."""

    label: ClassVar[str] = "kl"

    temperature: Temperature = field(default_factory=Temperature)  # softens both
    # of a pixel, by its class: one for each; balanced: 1 / pixels of it in the training masks;
    # none: all 1
    class_weights: ClassWeights = None
    # whose class a pixel has: the teacher's likeliest, or the label's where there is one
    class_of: Literal["teacher", "labels"] = "teacher"

    def __post_init__(self) -> None:
        check_weights(self.class_weights)

    @property
    def needs(self) -> Needs:
        """Logits; with class weights, one channel for each."""
        needs, given = logit_needs(self), self.class_weights
        return replace(
            needs,
            channels=num_weights(given) or None,
            class_counts=given == "balanced",
            counts_target=bool(given),
        )

    def with_class_counts(self, counts: tuple[int, ...]) -> "SoftKL":
        """Return this with the weights that balance classes of so many pixels."""
        return replace(self, class_weights=balanced(counts))

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over pixels; `progress` from 0 to 1 sets the temperature."""
        output, target, valid = self._pair(outputs, batch)
        pixels = distances.soft_kl(output, target, valid, self.temperature.at(progress))
        return self._sum(pixels, target, batch)

    def _weights(self, target: Float[Tensor, "b c y x"], batch: Batch) -> Float[Tensor, "b y x"]:
        inside = OnLogits._weights(self, target, batch)
        if not self.class_weights:
            return inside
        # argmax takes seven times as long on a CPU
        classes = target.max(1).indices if target.shape[1] > 1 else (target[:, 0] > 0).long()
        if self.class_of == "labels":
            labels = at_centres(batch.mask, *target.shape[2:])
            classes = torch.where(labels == IGNORE, classes, labels)
        return inside * vector(self.class_weights, target.device).float()[classes]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitMSE(OnLogits):
    """Squared difference of the student's logits from the teacher's."""

    label: ClassVar[str] = "logit_mse"
    _is_linear: ClassVar[bool] = True

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over pixels of the mean over channels."""
        output, target, valid = self._pair(outputs, batch)
        pixels = distances.squared_error(output, target, valid)
        return self._sum_of_squares(pixels, target, batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitCosine(OnLogits):
    """One minus the cosine of the student's logits and the teacher's."""

    label: ClassVar[str] = "logit_cosine"

    flatten: bool = False  # of each picture's logits as one vector, instead of each pixel's

    @property
    def needs(self) -> Needs:
        """Logits; of each pixel, two channels or more."""
        return replace(logit_needs(self), min_channels=1 if self.flatten else 2)

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Pixels that are no padding, or pictures with such a pixel."""
        return self._num_pictures(batch) if self.flatten else OnLogits.count(self, batch)

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over pixels or pictures."""
        return self._cosines(outputs, batch, self.flatten)
