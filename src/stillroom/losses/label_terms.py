"""Terms that compare an output of the student with the labels, on pixels that are neither void nor
padding.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.errors import UserError
from stillroom.losses import functions
from stillroom.losses.cells import labelled, resized
from stillroom.losses.class_weights import (
    ClassWeights,
    balanced,
    check_weights,
    num_weights,
    vector,
)
from stillroom.losses.needs import Needs, Outputs, Sum
from stillroom.types import IGNORE, Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class OnLabels:
    """What terms that read labels have in common."""

    weight: float = 1.0  # of this term
    output: str = "logits"  # of the student: its logits, or a tap that is a head of its own
    # the output's channel for each class of the labels, 255 = void; none: channels are the classes
    relabel: tuple[int, ...] = ()
    align: Literal["labels"] | None = None  # brings an output of another grid to the labels'

    def __post_init__(self) -> None:
        if not all(0 <= channel <= IGNORE for channel in self.relabel):
            raise UserError("no such channel", found=self.relabel, wanted="0 to 254, 255 for void")

    @property
    def needs(self) -> Needs:
        """Labels, and an output of the student with a channel for each of their classes."""
        return _needs(self)

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Labelled pixels."""
        return self._labels(batch)[1].sum(dtype=torch.float64)

    def _labels(self, batch: Batch) -> tuple[Int[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
        """Return channels as labels, and where they are known."""
        mask = batch.mask
        if self.relabel:
            table = (*self.relabel, *[IGNORE] * (IGNORE + 1 - len(self.relabel)))
            mask = vector(tuple(map(float, table)), mask.device).to(mask.dtype)[mask]
        return mask, labelled(mask, batch.inside)

    def _logits(self, outputs: Outputs, batch: Batch) -> Float[Tensor, "b k h w"]:
        """Return the output, on the labels' grid."""
        logits, (h, w) = outputs[self.output], batch.mask.shape[1:]
        return resized(logits, batch.inside, (h, w)) if self.align else logits


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy(OnLabels):
    """Cross entropy of several classes with the labels; pixels count with their class's weight."""

    label: ClassVar[str] = "ce"

    # one for each channel; balanced: 1 / pixels of it in the training masks; none: all 1
    class_weights: ClassWeights = None

    def __post_init__(self) -> None:
        OnLabels.__post_init__(self)
        check_weights(self.class_weights)

    @property
    def needs(self) -> Needs:
        """Two channels or more; with class weights, one channel for each."""
        needs, given = _needs(self), self.class_weights
        return replace(
            needs,
            min_channels=2,
            channels=num_weights(given) or needs.channels,
            class_counts=given == "balanced",
        )

    def with_class_counts(self, counts: tuple[int, ...]) -> "CrossEntropy":
        """Return this with the weights that balance classes of so many pixels."""
        relabel = self.relabel or tuple(range(len(counts)))
        pixels = [0] * _num_channels(relabel)
        for channel, count in zip(relabel, counts, strict=True):
            if channel != IGNORE:
                pixels[channel] += count
        return replace(self, class_weights=balanced(pixels))

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Labelled pixels, each counted with the weight of its class."""
        mask, valid = self._labels(batch)
        if not self.class_weights:
            return valid.sum(dtype=torch.float64)
        weights = vector(self.class_weights, mask.device)
        return weights[mask.masked_fill(~valid, 0)].masked_fill(~valid, 0.0).sum()

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over labelled pixels."""
        logits = self._logits(outputs, batch)
        weights = vector(self.class_weights, logits.device).float() if self.class_weights else None
        return functions.cross_entropy(logits, *self._labels(batch), weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCrossEntropy(OnLabels):
    """Cross entropy with class weights that follow the batches: a moving average of pixels / (k *
    pixels of the class), bounded. Sums are divided by pixels, whatever these weigh.

    Source: PINTO0309/human-instance-segmentation, its dynamic weights.
    """

    label: ClassVar[str] = "ce"

    boost: tuple[float, ...]  # factor of each channel's weight
    limits: tuple[float, float] = (0.5, 3.0)  # of a step's weights, before they are averaged
    decay: float = 0.9  # of the average
    begin_at_one: bool = True  # the average begins at 1; else at the first step's weights

    def __post_init__(self) -> None:
        OnLabels.__post_init__(self)
        low, high = self.limits
        if not (0 < low <= high < math.inf and 0 <= self.decay < 1):
            found = f"limits {self.limits}, decay {self.decay}"
            raise UserError("no such running weights", found=found, wanted="0 < low <= high")
        if len(self.boost) < 2 or min(self.boost) <= 0:
            raise UserError("boost is one positive number for each channel", found=self.boost)

    @property
    def needs(self) -> Needs:
        """A channel for each number of `boost`."""
        return replace(_needs(self), channels=len(self.boost), class_weights=len(self.boost))

    def first_weights(self) -> tuple[float, ...]:
        """Return the average before the first step; nan: what that step finds."""
        return (1.0 if self.begin_at_one else math.nan,) * len(self.boost)

    def pixels(self, batch: Batch) -> Float[Tensor, "k"]:
        """Labelled pixels of each channel, float64."""
        mask, valid = self._labels(batch)
        channels = torch.arange(len(self.boost), device=mask.device)
        hits = (mask.unsqueeze(-1) == channels) & valid.unsqueeze(-1)
        return hits.sum((0, 1, 2), dtype=torch.float64)

    def next_weights(
        self, before: Float[Tensor, "k"], pixels: Float[Tensor, "k"]
    ) -> Float[Tensor, "k"]:
        """Return the average after a step with so many pixels of each channel over all ranks; a
        channel without one keeps its weight.
        """
        boost = vector(self.boost, pixels.device)
        found = (boost * pixels.sum() / (len(boost) * pixels)).clamp(*self.limits)
        after = self.decay * before + (1 - self.decay) * found
        return torch.where(pixels > 0, torch.where(before.isnan(), found, after), before)

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over labelled pixels, weighted by `batch.class_weights`."""
        weights = batch.class_weights[self.output].nan_to_num(1.0).float()
        logits = self._logits(outputs, batch)
        return functions.cross_entropy(logits, *self._labels(batch), weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadAgreement(OnLabels):
    """Squared difference of a head's probabilities from those of the logits, whose classes are
    added up as `relabel` says, mean over the head's channels. Reads no label but where one is.

    Source: PINTO0309/human-instance-segmentation, its consistency of foreground and classes.
    """

    label: ClassVar[str] = "agree"

    def __post_init__(self) -> None:
        OnLabels.__post_init__(self)
        if len(self.relabel) < 2 or max(self.relabel) == IGNORE:
            raise UserError("relabel has the head's channel of each class", found=self.relabel)

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over labelled pixels."""
        groups = vector(tuple(map(float, self.relabel)), batch.mask.device).long()
        valid = self._labels(batch)[1]
        return functions.agreement(self._logits(outputs, batch), outputs["logits"], groups, valid)


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryCrossEntropy(OnLabels):
    """Cross entropy of each logit by itself with the labels.

    One channel: mask 1 is positive. Several: one class against the rest, mean over the channels.
    """

    label: ClassVar[str] = "bce"

    pos_weight: float = 1.0  # of a positive pixel; the count does not know it, as in torch

    def __post_init__(self) -> None:
        OnLabels.__post_init__(self)
        if not 0 < self.pos_weight < float("inf"):
            raise UserError("the weight of positive pixels is positive", found=self.pos_weight)

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over labelled pixels."""
        logits = self._logits(outputs, batch)
        return functions.binary_cross_entropy(logits, *self._labels(batch), self.pos_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Focal(OnLabels):
    """Cross entropy times (1 - p)^gamma, p being the probability of the true class: what is known
    well counts little.
    """

    label: ClassVar[str] = "focal"

    alpha: float = 0.5  # factor of every pixel; with one channel of positive ones, others 1 - alpha
    gamma: float = 2.0  # 0: plain cross entropy

    def __post_init__(self) -> None:
        OnLabels.__post_init__(self)
        if not (0 < self.alpha < 1 and 0 <= self.gamma < float("inf")):
            found = f"alpha {self.alpha}, gamma {self.gamma}"
            raise UserError("no such focal loss", found=found, wanted="alpha 0 to 1, gamma >= 0")

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over labelled pixels."""
        logits = self._logits(outputs, batch)
        return functions.focal(logits, *self._labels(batch), self.alpha, self.gamma)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dice(OnLabels):
    """Dice of each picture: of the foreground, or the mean over the classes present in its mask."""

    label: ClassVar[str] = "dice"

    smooth: float = 1e-5  # pixels added above and below the line
    only: tuple[int, ...] = ()  # channels that count, in the mask or not; none: all in the mask

    def __post_init__(self) -> None:
        OnLabels.__post_init__(self)
        if not 0 < self.smooth < float("inf"):
            raise UserError("the smoothing of Dice is positive", found=self.smooth)
        if any(channel < 0 for channel in self.only):
            raise UserError("no such channel of Dice", found=self.only, wanted="0 and up")

    @property
    def needs(self) -> Needs:
        """As many channels as `only` names."""
        return replace(_needs(self), min_channels=1 + max(self.only, default=0))

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Pictures with at least one labelled pixel."""
        return self._labels(batch)[1].flatten(1).any(1).sum(dtype=torch.float64)

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over pictures."""
        return functions.dice(
            self._logits(outputs, batch), *self._labels(batch), self.smooth, self.only
        )


def _needs(term: OnLabels) -> Needs:
    return Needs(
        head=term.output,
        align=term.align,
        channels=_num_channels(term.relabel) or None,
        classes=len(term.relabel) or None,
    )


def _num_channels(relabel: tuple[int, ...]) -> int:
    return 1 + max((channel for channel in relabel if channel != IGNORE), default=-1)
