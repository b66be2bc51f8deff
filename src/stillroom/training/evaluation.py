"""An evaluation during training: figures, curves, a picture grid, and the best student kept."""

from contextlib import closing
from typing import Any

from stillroom.training.checkpoint import save_best
from stillroom.training.log import Log, draw_curves
from stillroom.training.receipt import about_student
from stillroom.training.session import Session
from stillroom.training.show import draw_grid
from stillroom.training.step import labels
from stillroom.training.stream import Source, to_batch, validation_batches
from stillroom.training.validate import score, validate


def evaluate(session: Session, log: Log | None, step: int, epoch: int, best: float) -> float:
    """Evaluate, write figures and pictures, keep the best; return the best score so far."""
    if session.validation is None:
        found: dict[str, Any] = {}
    else:
        found = _validate(session, session.validation)
    new = score(found)
    if log is not None:
        log.write("val", step, epoch, found)
        draw_curves(log.lines, session.folder / "curves.png")
        if session.validation is not None:
            draw_grid(session, session.folder / "pictures" / f"step-{step:06d}.png")
        if new > best or not found.keys() & {"miou", "agreement"}:
            save_best(
                session.folder, session.distiller.student, about_student(session, step, found)
            )
        print(f"epoch {epoch + 1}: {_summary(session, found)}", flush=True)
    session.accelerator.wait_for_everyone()
    return max(best, new)


def _validate(session: Session, source: Source) -> dict[str, Any]:
    """Return the figures of a split over all ranks, each term's mean among them."""
    session.distiller.eval()
    device = session.accelerator.device
    stream = validation_batches(
        source,
        session.recipe.micro_batch,
        session.deal.rank,
        session.deal.world,
        workers=session.recipe.run.workers,
        pin=device.type == "cuda",
    )
    with closing(stream) as hosts:
        found = validate(
            session.distiller,
            session.terms,
            (to_batch(host, device, session.cache) for host in hosts),
            session.recipe.student.classes,
            device=device,
            reduce=session.reduce,
            autocast=lambda: session.accelerator.autocast(),
        )
    names = [f"term_{name}" for name in labels(session.terms)]
    return found | dict(zip(names, found.pop("terms"), strict=True))


def _summary(session: Session, found: dict[str, Any]) -> str:
    """Return an evaluation in a line; of a binary task the foreground's IoU too."""
    names = {"miou": "mIoU", "teacher_miou": "teacher mIoU", "agreement": "agreement"}
    known = [f"{label} {found[name]:.4f}" for name, label in names.items() if name in found]
    if len(session.pictures.classes) == 2:
        known += [
            f"{owner}{session.pictures.classes[1]} IoU {found[name][1]:.4f}"
            for name, owner in (("iou", ""), ("teacher_iou", "teacher "))
            if found.get(name) and found[name][1] is not None
        ]
    return ", ".join(known)
