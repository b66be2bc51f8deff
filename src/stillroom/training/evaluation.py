"""An evaluation during training: figures, curves, a picture grid, and the best student kept."""

from contextlib import closing
from typing import Any

from stillroom.training.checkpoint import save_best
from stillroom.training.context import TrainContext
from stillroom.training.log import Log, draw_curves
from stillroom.training.receipt import about_student
from stillroom.training.show import draw_grid
from stillroom.training.step import labels
from stillroom.training.stream import RowDataset, to_batch, validation_batches
from stillroom.training.validate import selection_score, validate


def evaluate(context: TrainContext, log: Log | None, step: int, epoch: int, best: float) -> float:
    """Evaluate, write figures and pictures, keep the best; return the best score so far."""
    if context.validation is None:
        found: dict[str, Any] = {}
    else:
        found = _validate(context, context.validation)
    new = selection_score(found)
    if log is not None:
        log.write("val", step, epoch, found)
        draw_curves(log.lines, context.folder / "curves.png")
        if context.validation is not None:
            draw_grid(context, context.folder / "pictures" / f"step-{step:06d}.png")
        if new > best or not found.keys() & {"miou", "agreement"}:
            save_best(
                context.folder, context.distiller.student, about_student(context, step, found)
            )
        print(f"epoch {epoch + 1}: {_summary(context, found)}", flush=True)
    context.accelerator.wait_for_everyone()
    return max(best, new)


def _validate(context: TrainContext, dataset: RowDataset) -> dict[str, Any]:
    """Return the figures of a split over all ranks, each term's mean among them."""
    context.distiller.eval()
    device = context.accelerator.device
    stream = validation_batches(
        dataset,
        context.recipe.micro_batch,
        context.schedule.rank,
        context.schedule.world,
        workers=context.recipe.run.workers,
        pin=device.type == "cuda",
    )
    with closing(stream) as hosts:
        found = validate(
            context.distiller,
            context.terms,
            (to_batch(host, device, context.cache) for host in hosts),
            context.recipe.student.classes,
            device=device,
            reduce=context.reduce,
            autocast=lambda: context.accelerator.autocast(),
        )
    names = [f"term_{name}" for name in labels(context.terms)]
    return found | dict(zip(names, found.pop("terms"), strict=True))


def _summary(context: TrainContext, found: dict[str, Any]) -> str:
    """Return an evaluation in a line; of a binary task the foreground's IoU too."""
    names = {"miou": "mIoU", "teacher_miou": "teacher mIoU", "agreement": "agreement"}
    known = [f"{label} {found[name]:.4f}" for name, label in names.items() if name in found]
    if len(context.pictures.classes) == 2:
        known += [
            f"{owner}{context.pictures.classes[1]} IoU {found[name][1]:.4f}"
            for name, owner in (("iou", ""), ("teacher_iou", "teacher "))
            if found.get(name) and found[name][1] is not None
        ]
    return ", ".join(known)
