"""Validation from the cached split: the student's data-set mIoU, the teacher's, their agreement; no
teacher runs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.losses import Term
from stillroom.metrics import confusion, iou, miou, predict
from stillroom.training.step import totals
from stillroom.types import Batch


def teacher_target(batch: Batch, classes: int) -> str | None:
    """Return the name of the first target that is a map of the student's classes on the picture's
    grid.
    """
    for name, target in batch.targets.items():
        if target.shape[1] == classes and target.shape[2:] == batch.image.shape[2:]:
            return name
    return None


@torch.no_grad()
def validate(
    distiller: nn.Module,
    terms: Sequence[Term],
    batches: Iterable[Batch],
    classes: int,
    *,
    device: torch.device,
    reduce: Callable[[Tensor], Tensor],
    autocast: Callable[[], Any],
) -> dict[str, Any]:
    """Return figures over all ranks' batches; terms are taken at the end of their schedules.

    `classes` are the student's output channels (1 for a binary task); `reduce` sums a tensor over
    ranks.
    """
    k = max(2, classes)
    tables = torch.zeros(3, k, k, dtype=torch.int64, device=device)
    sums = torch.zeros(2, len(terms), dtype=torch.float64, device=device)
    for batch in batches:
        with autocast():
            outputs = distiller(batch.image)
        student = predict(outputs["logits"])
        inside_mask = torch.where(batch.inside, batch.mask, 255)
        tables[0] += confusion(student, inside_mask, k)
        name = teacher_target(batch, classes)
        if name is not None:
            teacher = predict(batch.targets[name])
            tables[1] += confusion(teacher, inside_mask, k)
            tables[2] += confusion(student, torch.where(batch.inside, teacher, 255), k)
        sums[0] += totals(terms, outputs, batch, 1.0)
        sums[1] += torch.stack([term.count(batch) for term in terms])
    tables, sums = reduce(tables).cpu(), reduce(sums).cpu()
    return figures(tables) | {"terms": (sums[0] / sums[1]).tolist()}


def figures(tables: Tensor) -> dict[str, Any]:
    """Return mIoU, IoUs and agreement of three confusion matrices: student, teacher, student
    against teacher.

    `tables` is (3 k k) counts, truth by prediction; what was not seen is left out.
    """
    found: dict[str, Any] = {}
    if tables[0].sum():
        found |= {"miou": float(miou(tables[0])), "iou": _known(iou(tables[0]))}
    if tables[1].sum():
        found |= {"teacher_miou": float(miou(tables[1])), "teacher_iou": _known(iou(tables[1]))}
    if tables[2].sum():
        found["agreement"] = float(tables[2].diagonal().sum() / tables[2].sum())
    return found


def selection_score(found: dict[str, Any]) -> float:
    """Return what `best` means: mIoU where there are labels, otherwise agreement."""
    known = [found[name] for name in ("miou", "agreement") if found.get(name) is not None]
    return known[0] if known else 0.0


def _known(values: Tensor) -> list[float | None]:
    """Return numbers for JSON: None for a class that is neither in truth nor in prediction."""
    return [None if value != value else value for value in values.tolist()]
