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
    num_classes,
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

    def __init__(self, teacher: CachedMasks | None = None) -> None:
        self.teacher = teacher
        self.scores: list[tuple[str, float]] = []
        self._boundary: Tensor | int = 0
        self._bins: Tensor | int = 0
        self._regions: Tensor | int = 0  # as `region_sums` gives them
        self._teacher: Tensor | int = 0  # truth by teacher
        self._agreement: Tensor | int = 0  # teacher by student

    def add(
        self,
        names: Sequence[str],
        pictures: Sequence[Picture],
        logits: Float[Tensor, "b k h w"],
        mask: Int[Tensor, "b h w"],
    ) -> None:
        """Add a batch of rows on the CPU; of `mask` what is padding is void."""
        k = num_classes(logits.shape[1])
        self._bins = self._bins + calibration(logits, mask, _BINS)
        if pictures[0].box is not None:
            self._regions = self._regions + region_sums(predict(logits), mask, mask != IGNORE)
        rows = zip(names, pictures, predict(logits), mask, strict=True)
        for name, picture, student, truth in rows:
            reference = truth
            self._boundary = self._boundary + boundary_counts(student, truth, k)
            if self.teacher is not None:
                taught = self.teacher.mask(name)
                inside = torch.from_numpy(inside_array(picture))
                self._teacher = self._teacher + confusion(taught[None], truth[None], k)
                seen = torch.where(inside, taught, IGNORE)
                self._agreement = self._agreement + confusion(student[None], seen[None], k)
                reference = seen if bool((truth == IGNORE).all()) else truth
            score = float(miou(confusion(student[None], reference[None], k)))
            if score == score:  # a picture of nothing but void has none
                self.scores.append((name, score))

    def figures(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the figures; what was not seen is left out."""
        found: dict[str, Any] = {}
        if isinstance(self._bins, Tensor) and self._bins[0].sum():
            found |= self._of_labels(classes)
        if isinstance(self._agreement, Tensor):
            right = self._agreement.diagonal().sum()
            found["agreement"] = float(right / self._agreement.sum())
        if isinstance(self._teacher, Tensor) and self._teacher.sum():
            found["teacher_miou"] = float(miou(self._teacher))
        if isinstance(self._regions, Tensor):
            found |= region_figures(self._regions)
        if self.scores:
            found["picture_miou"] = dict(self.scores)
        return found

    def _of_labels(self, classes: Sequence[str]) -> dict[str, Any]:
        assert isinstance(self._boundary, Tensor) and isinstance(self._bins, Tensor)
        shared, either = self._boundary.double()
        ious = shared / either
        return {
            "boundary_miou": float(ious.nanmean()),
            "boundary_iou": by_class(classes, ious),
            "calibration_error": calibration_error(self._bins),
            "calibration": self._bins.T.tolist(),
        }
