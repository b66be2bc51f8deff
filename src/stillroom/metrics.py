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


def region_sums(
    prediction: Int[Tensor, "b y x"], mask: Int[Tensor, "b y x"], inside: Bool[Tensor, "b y x"]
) -> Float[Tensor, "4"]:
    """Return, over regions with a target in the truth, the sum of its IoUs (class 1), how many are
    above .5 and above .7, and how many there are; float64.
    """
    valid = inside & (mask != IGNORE)
    truth, found = valid & (mask == 1), valid & (prediction == 1)
    both, either = (x.sum((1, 2)).double() for x in (truth & found, truth | found))
    values = (both / either.clamp_min(1))[truth.any(2).any(1)]
    above = ((values > bound).sum() for bound in (0.5, 0.7))
    return torch.stack([values.sum(), *above, (values >= 0).sum()]).double()


def region_figures(sums: Float[Tensor, "4"]) -> dict[str, float]:
    """Return the mean of the regions' target IoUs, and the shares above .5 and .7; of none nothing.

    Source: PINTO0309/human-instance-segmentation, whose detection rates these shares are.
    """
    total, half, most, count = sums.tolist()
    if not count:
        return {}
    return {
        "target_iou": total / count,
        "detection_rate_50": half / count,
        "detection_rate_70": most / count,
    }


def iou(confusion: Int[Tensor, "k k"]) -> Float[Tensor, "k"]:
    """Return each class's IoU in float64; nan where it is in neither truth nor prediction."""
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(0) + confusion.sum(1) - hits)


def miou(confusion: Int[Tensor, "k k"]) -> Float[Tensor, ""]:
    """Return the mean over the classes that are in truth or prediction; nan for none at all."""
    return iou(confusion).nanmean()
