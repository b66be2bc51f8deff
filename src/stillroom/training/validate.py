"""Validation from the cached split, no teacher runs: the student's data-set mIoU, the teacher's,
their agreement; curves, a picture grid, and the best student kept.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from stillroom.losses import Term
from stillroom.metrics import (
    SCORES,
    confusion,
    iou,
    known,
    miou,
    predict,
    region_figures,
    region_sums,
)
from stillroom.training.batches import decoded_batches
from stillroom.training.checkpoint import save_best
from stillroom.training.context import TrainContext
from stillroom.training.evaluations import Evaluation, best_score, evaluation_of
from stillroom.training.log import Log, draw_curves, write_history
from stillroom.training.receipt import about_student
from stillroom.training.show import draw_grid, teacher_target
from stillroom.training.step import labels, term_totals
from stillroom.training.stream import RowDataset, validation_batches
from stillroom.types import Batch


def evaluate(
    context: TrainContext, log: Log | None, step: int, epoch: int, earlier: Sequence[Evaluation]
) -> Evaluation:
    """Evaluate, write figures and pictures, keep the student where it is the best so far, or the
    last where there is no score. Where there is an average of its weights it is the student.
    """
    average = context.average
    with nullcontext() if average is None else average.in_place():
        return _evaluate(context, log, step, epoch, best_score(earlier))


def _evaluate(
    context: TrainContext, log: Log | None, step: int, epoch: int, best: float
) -> Evaluation:
    dataset = context.validation
    found = {} if dataset is None else _validate(context, dataset)
    evaluation = evaluation_of(context.recipe, step, found)
    score = evaluation["score"]
    if log is not None:
        log.write("val", step, epoch, found)
        write_history(log.lines, context.folder / "history.csv")
        draw_curves(log.lines, context.folder / "curves.png")
        if dataset is not None:
            draw_grid(context, dataset, context.folder / "pictures" / f"step-{step:06d}.png")
        if score is None or score > best:
            about = about_student(context, step, found)
            save_best(context.folder, context.distiller.student, about)
        classes = context.recipe.classes_of(context.pictures)
        context.print(f"epoch {epoch + 1}: {summary(found, classes)}")
    context.accelerator.wait_for_everyone()
    return evaluation


def _validate(context: TrainContext, dataset: RowDataset) -> dict[str, Any]:
    """Return the figures of a split over all ranks, each term's mean among them."""
    context.distiller.eval()
    device = context.accelerator.device
    stream = validation_batches(
        dataset,
        context.recipe.micro_batch,
        context.schedule.rank,
        context.schedule.world,
        workers=context.recipe.run.num_workers,
        pin=device.type == "cuda",
    )
    with closing(stream) as hosts:
        found = validate(
            context.distiller,
            context.recipe.terms,
            map(context.class_weights.give, decoded_batches(hosts, device, context.cache)),
            context.recipe.student.classes,
            device=device,
            reduce=context.reduce,
            autocast=lambda: context.accelerator.autocast(),
        )
    names = [f"term_{name}" for name in labels(context.recipe.terms)]
    return found | dict(zip(names, found.pop("terms"), strict=True))


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
    regions = torch.zeros(4, dtype=torch.float64, device=device)

    def add(batch: Batch) -> None:
        with autocast():
            outputs = distiller(batch.image, batch.boxes)
        student = predict(outputs["logits"])
        tables[0] += confusion(student, batch.mask, k, batch.inside)
        name = teacher_target(batch, classes)
        if name is not None:
            teacher = predict(batch.targets[name])
            tables[1] += confusion(teacher, batch.mask, k, batch.inside)
            tables[2] += confusion(student, teacher, k, batch.inside)
        if batch.boxes is not None:
            regions.add_(region_sums(student, batch.mask, batch.inside))
        sums[0] += term_totals(terms, outputs, batch, 1.0)
        sums[1] += torch.stack([term.count(batch) for term in terms])

    deque(map(add, batches), maxlen=0)  # of which none is kept while the next is decoded
    tables, sums, regions = reduce(tables).cpu(), reduce(sums).cpu(), reduce(regions).cpu()
    found = region_figures(regions) | figures(tables)
    return found | {"terms": (sums[0] / sums[1]).tolist()}


def figures(tables: Int[Tensor, "3 k k"]) -> dict[str, Any]:
    """Return mIoU, IoUs and agreement of three confusion matrices (counts, truth by prediction):
    student, teacher, student against teacher; what was not seen is left out.
    """
    found: dict[str, Any] = {}
    if tables[0].sum():
        found |= {"miou": float(miou(tables[0])), "iou": known(iou(tables[0]))}
    if tables[1].sum():
        found |= {"teacher_miou": float(miou(tables[1])), "teacher_iou": known(iou(tables[1]))}
    if tables[2].sum():
        found["agreement"] = float(tables[2].diagonal().sum() / tables[2].sum())
    return found


def summary(found: dict[str, Any], classes: Sequence[str]) -> str:
    """Return an evaluation in a line; of a binary task the foreground's IoU too."""
    names = {**SCORES, "teacher_miou": "teacher mIoU"}
    known = [f"{label} {found[name]:.4f}" for name, label in names.items() if name in found]
    if len(classes) == 2:
        known += [
            f"{owner}{classes[1]} IoU {found[name][1]:.4f}"
            for name, owner in (("iou", ""), ("teacher_iou", "teacher "))
            if found.get(name) and found[name][1] is not None
        ]
    return ", ".join(known) or "no score"
