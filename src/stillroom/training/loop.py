"""Stage 2: the loop, top to bottom: data, counts, forward, backward, step, log, evaluate, save.

Order, learning rate, temperature and randomness are functions of the step, so the position is all
that a resume needs besides tensors.
"""

import math
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import FailureError, Stopped
from stillroom.jsonfile import read_json, write_bytes, write_json
from stillroom.losses import epoch_progress
from stillroom.recipe import Recipe
from stillroom.training.checkpoint import (
    clear_leftovers,
    load_checkpoint,
    newest_checkpoint,
    save_best,
    save_checkpoint,
)
from stillroom.training.log import Log, draw_curves
from stillroom.training.prepare import Session, average_buffers, frozen_parameters, prepare
from stillroom.training.receipt import about_student, describe, receipt
from stillroom.training.schedule import learning_rate
from stillroom.training.show import draw_grid
from stillroom.training.step import forward_backward, labels, local_counts, seed_forward
from stillroom.training.stream import (
    HostBatch,
    Source,
    to_batch,
    training_batches,
    validation_batches,
)
from stillroom.training.validate import score, validate
from stillroom.types import Batch


def train(recipe: Recipe) -> Path:
    """Train a student and return the run's folder.

    Raises UserError before any work for what cannot work, DamageError for a row that cannot be
    read, FailureError for a loss that is not finite, Stopped after a checkpoint when a signal asked
    to stop.
    """
    session = prepare(recipe)
    began = time.perf_counter()
    step, best = _restore(session)
    session.say(describe(session))
    with (
        _stop_on_signals() as stop,
        Log(session.folder, step) if session.is_first else nullcontext() as log,
        closing(_stream(session, step)) as stream,
    ):
        _run_steps(session, stream, log, stop, step, best)
    _finish(session, time.perf_counter() - began)
    return session.folder


def _run_steps(
    session: Session,
    stream: Iterator[HostBatch],
    log: Log | None,
    stop: threading.Event,
    step: int,
    best: float,
) -> None:
    """Run the optimiser steps from `step` to the last."""
    recipe = session.recipe
    record = _Record(session)
    mode_of = -1
    while step < session.steps:
        epoch = step // session.epoch_steps
        frozen = _is_frozen(recipe, epoch)
        if mode_of != epoch:
            _set_mode(session, frozen)
            mode_of = epoch

        batches, counts = _next_step(session, stream)
        totals = _forward_backward(session, step, epoch, batches, counts)
        rate = _update(session, step, frozen)
        average_buffers(session.distiller, session.deal.world)
        step += 1

        record.add(totals, counts)
        ends_epoch = step % session.epoch_steps == 0
        due = (ends_epoch and (epoch + 1) % recipe.run.evaluate_every == 0) or step == session.steps
        told_to_stop = False
        if due or step % recipe.run.log_every == 0:
            figures = record.figures(step) | {"lr": rate}
            if log is not None:
                log.write("train", step, epoch, figures)
                _print_step(session, step, figures)
            told_to_stop = session.any(stop.is_set()) and step < session.steps

        if due or told_to_stop:
            _require_finite(session, step)
        if due:
            best = _evaluate(session, log, step, epoch, best)
            mode_of = -1
        if due or told_to_stop:
            _save(session, step, best)
        if told_to_stop:
            (session.folder / "requeue").touch()
            raise Stopped("told to stop", found=f"saved at step {step} of {session.steps}")


class _Record:
    """Sums and counts of the terms since the last line of the log, kept on the device."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._names = labels(session.terms)
        self._began = time.perf_counter()
        self._steps = 0
        self._totals: Tensor | float = 0.0
        self._counts: Tensor | float = 0.0

    def add(self, totals: Tensor, counts: Tensor) -> None:
        """Add one step: this rank's totals and the global counts, (terms,)."""
        self._totals = self._totals + totals.double()
        self._counts = self._counts + counts
        self._steps += 1

    def figures(self, step: int) -> dict[str, Any]:
        """Return means over the steps since the last call, over all ranks; raises FailureError
        where one is not finite.
        """
        assert isinstance(self._totals, Tensor) and isinstance(self._counts, Tensor)
        means = (self._session.reduce(self._totals) / self._counts).tolist()
        seen = (self._counts > 0).tolist()
        found: dict[str, Any] = {}
        loss = 0.0
        for term, name, mean, there in zip(
            self._session.terms, self._names, means, seen, strict=True
        ):
            found[f"term_{name}"] = mean if there else None
            loss += term.weight * mean if there else 0.0
            if there and not math.isfinite(mean):
                raise FailureError(f"the term {name} is not finite at step {step}", found=mean)
        seconds = time.perf_counter() - self._began
        rows = self._steps * self._session.recipe.batch
        self._totals, self._counts, self._steps = 0.0, 0.0, 0
        self._began = time.perf_counter()
        return {"loss": loss, **found, "rows_per_s": round(rows / seconds, 2)}


def _restore(session: Session) -> tuple[int, float]:
    """Return the step to go on from and the best score so far."""
    if not session.recipe.run.resume:
        return 0, -1.0
    if session.is_first:
        clear_leftovers(session.folder)
    folder, state = newest_checkpoint(session.folder, session.say)
    load_checkpoint(folder, session.distiller, session.optimizer.optimizer)
    scaler = session.accelerator.scaler
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    session.say(f"resumed from {folder}")
    return state["step"], state["best"]


def _stream(session: Session, step: int) -> Generator[HostBatch, None, None]:
    recipe = session.recipe
    return training_batches(
        session.source,
        session.order,
        session.deal,
        range(step, session.steps),
        augment=recipe.augment,
        seed=recipe.seed,
        workers=recipe.run.workers,
        pin=session.accelerator.device.type == "cuda",
        may_substitute=recipe.on_damage == "substitute",
    )


def _next_step(session: Session, stream: Iterator[HostBatch]) -> tuple[list[Batch], Tensor]:
    """Read all of this rank's micro-batches of a step; return them and each term's global count,
    (terms,).

    A row that cannot be read raises DamageError here; the launcher then stops the other ranks.
    """
    device = session.accelerator.device
    batches = [to_batch(next(stream), device, session.cache) for _ in session.deal.micro_batches()]
    return batches, session.reduce(local_counts(session.terms, batches, device))


def _forward_backward(
    session: Session, step: int, epoch: int, batches: list[Batch], counts: Tensor
) -> Tensor:
    """Run this rank's micro-batches of a step; return the local totals, (terms,)."""
    micros, seed = session.deal.micro_batches(), session.recipe.seed
    return forward_backward(
        session.model,
        session.terms,
        batches,
        counts,
        progress=epoch_progress(epoch, session.recipe.epochs),
        world=session.deal.world,
        seed_micro=lambda i: seed_forward(seed, step, micros[i]),
        backward=session.accelerator.backward,
        no_sync=lambda: session.accelerator.no_sync(session.model),
    )


def _update(session: Session, step: int, frozen: bool) -> float:
    """Clip and step; return the learning rate."""
    recipe, optimizer = session.recipe, session.optimizer
    rate = learning_rate(recipe.optimizer, step, session.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    if frozen:
        for _, parameter in frozen_parameters(session.distiller, recipe.freeze):
            parameter.grad = None
    if recipe.optimizer.clip:
        trained = [p for p in session.distiller.parameters() if p.grad is not None]
        session.accelerator.clip_grad_norm_(trained, recipe.optimizer.clip)
    optimizer.step()
    optimizer.zero_grad()
    return rate


def _is_frozen(recipe: Recipe, epoch: int) -> bool:
    """Return whether the parts named in `freeze` keep still in this epoch."""
    epochs = recipe.epochs if recipe.freeze_epochs is None else recipe.freeze_epochs
    return bool(recipe.freeze) and epoch < epochs


def _set_mode(session: Session, frozen: bool) -> None:
    """Put the network into training mode, frozen parts and their BatchNorm into evaluation mode."""
    session.model.train()
    if not frozen:
        return
    for name, module in session.distiller.student.named_modules():
        if any(f".{part}." in f".{name}." for part in session.recipe.freeze):
            module.eval()


def _evaluate(session: Session, log: Log | None, step: int, epoch: int, best: float) -> float:
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


def _require_finite(session: Session, step: int) -> None:
    """Raise FailureError, on every rank, rather than evaluate and save what is not finite."""
    for name, tensor in session.distiller.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise FailureError(
                f"the student is not finite after step {step}; nothing was saved of it",
                found=name,
                fix="a lower --optimizer.lr, or --precision fp32 or bf16",
            )


def _summary(session: Session, found: dict[str, Any]) -> str:
    """Return an evaluation in a line; of a binary task the foreground's IoU too."""
    names = {"miou": "mIoU", "teacher_miou": "teacher mIoU", "agreement": "agreement"}
    known = [f"{label} {found[name]:.4f}" for name, label in names.items() if name in found]
    if len(session.pictures.classes) == 2:
        known += [
            f"{owner}{session.pictures.classes[1]} IoU {found[name][1]:.4f}"
            for name, owner in (("iou", ""), ("teacher_iou", "teacher "))
            if found.get(name)
        ]
    return ", ".join(known)


def _save(session: Session, step: int, best: float) -> None:
    if session.is_first:
        scaler = session.accelerator.scaler
        state = {
            "step": step,
            "best": best,
            "scaler": None if scaler is None else scaler.state_dict(),
            "torch": str(torch.__version__),
        }
        save_checkpoint(
            session.folder,
            session.distiller,
            session.optimizer.optimizer,
            state,
            session.recipe.run.keep,
        )
    session.accelerator.wait_for_everyone()


def _finish(session: Session, seconds: float) -> None:
    """Put the best student at the run's top, and the receipt."""
    substituted = int(
        session.reduce(
            torch.tensor(float(session.source.substituted), device=session.accelerator.device)
        )
    )
    if not session.is_first:
        return
    (session.folder / "requeue").unlink(missing_ok=True)
    best = session.folder / "best"
    for name in ("student.safetensors", "student.json"):
        write_bytes(session.folder / name, (best / name).read_bytes())
    write_json(session.folder / "receipt.json", receipt(session, seconds, substituted))
    if substituted:
        print(f"{substituted} damaged rows were left out; the rows after them took their places")
    print(f"done: {session.folder}, best {score(read_json(best / 'student.json')['score']):.4f}")


def _print_step(session: Session, step: int, figures: dict[str, Any]) -> None:
    terms = ", ".join(
        f"{name.removeprefix('term_')} {value:.4f}"
        for name, value in figures.items()
        if name.startswith("term_") and value is not None
    )
    print(
        f"step {step}/{session.steps}: loss {figures['loss']:.4f} ({terms}),"
        f" {figures['rows_per_s']:.1f} rows/s",
        flush=True,
    )


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Within, SIGTERM and SIGUSR1 set the event; the loop saves at its next line of the log."""
    stop = threading.Event()
    on_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGUSR1) if on_main else ()
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
