"""Data-set metrics from confusion counts, which add up over batches and ranks."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from stillroom.types import IGNORE

# the scores of an evaluation by name; the first that is known decides which student is the best
SCORES = {"target_iou": "target IoU", "miou": "mIoU", "agreement": "agreement"}


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


def known(values: Float[Tensor, "k"]) -> list[float | None]:
    """Return numbers for JSON: None for nan, a class that is neither in truth nor in prediction."""
    return [None if value != value else value for value in values.tolist()]


def by_class(classes: Sequence[str], values: Float[Tensor, "k"]) -> dict[str, float | None]:
    """Return the same by the classes' names."""
    return dict(zip(classes, known(values), strict=True))


def miou(confusion: Int[Tensor, "k k"]) -> Float[Tensor, ""]:
    """Return the mean over the classes that are in truth or prediction; nan for none at all."""
    return iou(confusion).nanmean()


def precision(confusion: Int[Tensor, "k k"]) -> Float[Tensor, "k"]:
    """Return the share of each class's predictions that are right, float64; nan where none is."""
    return confusion.diagonal().double() / confusion.sum(0)


def recall(confusion: Int[Tensor, "k k"]) -> Float[Tensor, "k"]:
    """Return the share of each class's pixels that are found, float64; nan where it has none."""
    return confusion.diagonal().double() / confusion.sum(1)


def boundary_width(height: int, width: int) -> int:
    """Return how wide a boundary is, pixels: 2 % of the picture's diagonal, as Cheng et al. 2021
    (Boundary IoU, section 5) take it.
    """
    return max(1, round(0.02 * math.hypot(height, width)))


def boundary(masks: Bool[Tensor, "n h w"], width: int) -> Bool[Tensor, "n h w"]:
    """Return the pixels of masks that are within `width` pixels (chessboard) of what is not mask,
    the outside of the picture included.
    """
    near = functional.pad((~masks).int(), (width,) * 4, value=1)
    for axis in (1, 2):
        sums = functional.pad(near.cumsum(axis), (1, 0) if axis == 2 else (0, 0, 1, 0))
        length = sums.shape[axis] - 2 * width - 1
        ahead = sums.narrow(axis, 2 * width + 1, length)
        near = (ahead > sums.narrow(axis, 0, length)).int()
    return masks & near.bool()


def boundary_counts(
    prediction: Int[Tensor, "h w"], mask: Int[Tensor, "h w"], classes: int
) -> Int[Tensor, "2 {classes}"]:
    """Return, per class, how many pixels the boundaries of one picture share, and how many are of
    either. Both masks are cut at void, so that what no one knows bounds both alike.
    """
    counts = torch.zeros(2, classes, dtype=torch.int64)
    known = torch.where(mask == IGNORE, IGNORE, prediction)
    present = torch.cat([known.unique(), mask.unique()]).unique()
    present = present[present != IGNORE].long()
    planes = torch.stack([known == present[:, None, None], mask == present[:, None, None]])
    width = boundary_width(*mask.shape)
    ours, truth = boundary(planes.flatten(0, 1), width).view(planes.shape)
    counts[0, present] = (ours & truth).sum((1, 2))
    counts[1, present] = (ours | truth).sum((1, 2))
    return counts


def calibration(
    logits: Float[Tensor, "b k h w"], mask: Int[Tensor, "b h w"], bins: int
) -> Float[Tensor, "3 {bins}"]:
    """Return, per bin of the predicted class's probability, pixels, the sum of the probabilities,
    and how many are right; float64. Bin i holds (i / bins, (i + 1) / bins].
    """
    valid = mask != IGNORE
    if logits.shape[1] == 1:
        sure = logits[:, 0].float().abs().sigmoid()
    else:
        sure = logits.float().softmax(1).amax(1)
    sure, right = sure[valid].double(), (predict(logits) == mask)[valid].double()
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    weights = (torch.ones_like(sure), sure, right)
    return torch.stack([torch.bincount(place, weight, bins).double() for weight in weights])


def calibration_error(table: Float[Tensor, "3 bins"]) -> float:
    """Return the expected calibration error of such counts (Guo et al. 2017, section 2): the mean
    over pixels of how far a bin's accuracy is from its mean probability.
    """
    return float((table[1] - table[2]).abs().sum() / table[0].sum())
