"""What one pass over labelled pictures measures besides the confusion matrix, as sums and counts:
boundary IoU, calibration, agreement with the teacher, and each picture's own mIoU.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillroom.metrics import (
    boundary_counts,
    by_class,
    calibration,
    calibration_error,
    confusion,
    miou,
    predict,
    region_figures,
    region_sums,
)
from stillroom.pictures.dataset import Picture
from stillroom.pictures.loader import inside_array
from stillroom.types import IGNORE
from stillroom.using.cached_masks import CachedMasks

_BINS = 15


class Measures:
    """Sums over a pass; no logits are kept. `scores` has (name, mIoU) of each row in order,
    against its labels, or against the teacher where it has none.
    """

    def __init__(self, num_classes: int, teacher: CachedMasks | None = None) -> None:
        self.scores: list[tuple[str, float]] = []
        self._teacher, self._k = teacher, num_classes
        self._boundary = torch.zeros(2, num_classes, dtype=torch.int64)
        self._bins = torch.zeros(3, _BINS, dtype=torch.float64)
        self._regions = torch.zeros(4, dtype=torch.float64)  # as `region_sums` gives them
        self._taught = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # truth by teacher
        self._agreement = torch.zeros_like(self._taught)  # teacher by student

    def add(
        self,
        names: Sequence[str],
        pictures: Sequence[Picture],
        logits: Float[Tensor, "b k h w"],
        mask: Int[Tensor, "b h w"],
    ) -> None:
        """Add a batch of rows on the CPU; of `mask` what is padding is void."""
        k = self._k
        self._bins += calibration(logits, mask, _BINS)
        if pictures[0].box is not None:
            self._regions += region_sums(predict(logits), mask, mask != IGNORE)
        rows = zip(names, pictures, predict(logits), mask, strict=True)
        for name, picture, student, truth in rows:
            reference = truth
            self._boundary += boundary_counts(student, truth, k)
            if self._teacher is not None:
                taught = self._teacher.mask(name)
                inside = torch.from_numpy(inside_array(picture))
                self._taught += confusion(taught[None], truth[None], k)
                seen = torch.where(inside, taught, IGNORE)
                self._agreement += confusion(student[None], seen[None], k)
                reference = seen if bool((truth == IGNORE).all()) else truth
            score = float(miou(confusion(student[None], reference[None], k)))
            if score == score:  # a picture of nothing but void has none
                self.scores.append((name, score))

    def figures(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the figures; what was not seen is left out."""
        found: dict[str, Any] = {**region_figures(self._regions)}
        if self._bins[0].sum():
            found |= self._of_labels(classes)
        if self._agreement.sum():
            right = self._agreement.diagonal().sum()
            found["agreement"] = float(right / self._agreement.sum())
        if self._taught.sum():
            found["teacher_miou"] = float(miou(self._taught))
        if self.scores:
            found["picture_miou"] = dict(self.scores)
        return found

    def _of_labels(self, classes: Sequence[str]) -> dict[str, Any]:
        shared, either = self._boundary.double()
        ious = shared / either
        return {
            "boundary_miou": float(ious.nanmean()),
            "boundary_iou": by_class(classes, ious),
            "calibration_error": calibration_error(self._bins),
            "calibration": self._bins.T.tolist(),
        }
