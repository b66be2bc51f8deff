"""Data-set metrics from confusion counts, which add up over batches and ranks."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.types import IGNORE


def num_classes(channels: int) -> int:
    """Return how many classes logits of so many channels tell apart: 2 for one channel."""
    return 2 if channels == 1 else channels


def predict(logits: Float[Tensor, "b k h w"]) -> Int[Tensor, "b h w"]:
    """Return class indices: logit above 0 for one channel, the largest logit for several."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def confusion(
    prediction: Int[Tensor, "b h w"],
    mask: Int[Tensor, "b h w"],
    classes: int,
    inside: Bool[Tensor, "b h w"] | None = None,
) -> Int[Tensor, "{classes} {classes}"]:
    """Count pixels by (true class, predicted class), without void and, where given, padding.

    Raises ValueError for a label that is neither a class nor 255.
    """
    valid = mask != IGNORE if inside is None else inside & (mask != IGNORE)
    counts = torch.bincount(
        (mask.long() * classes + prediction.long())[valid], minlength=classes**2
    )
    if counts.numel() != classes**2:
        raise ValueError(f"a label or prediction is outside the {classes} classes")
    return counts.view(classes, classes)


def iou(confusion: Int[Tensor, "k k"]) -> Float[Tensor, "k"]:
    """Return each class's IoU in float64; nan where it is in neither truth nor prediction."""
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(0) + confusion.sum(1) - hits)


def miou(confusion: Int[Tensor, "k k"]) -> Float[Tensor, ""]:
    """Return the mean over the classes that are in truth or prediction; nan for none at all."""
    return iou(confusion).nanmean()
