"""Stage 2: the loop, top to bottom: data, counts, forward, backward, step, log, evaluate, save.

Order, learning rate, temperature and randomness are functions of the step, so the position is all
that a resume needs besides tensors.
"""

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from stillroom.errors import FailureError, Stopped
from stillroom.jsonfile import read_json, write_bytes, write_json
from stillroom.losses import epoch_progress
from stillroom.recipe import Recipe
from stillroom.signals import stop_on_signals
from stillroom.training.checkpoint import (
    clear_leftovers,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from stillroom.training.evaluation import evaluate
from stillroom.training.log import Log
from stillroom.training.parameters import average_buffers, frozen_parameters
from stillroom.training.prepare import prepare
from stillroom.training.receipt import describe, receipt
from stillroom.training.record import Record, step_line
from stillroom.training.schedule import learning_rate
from stillroom.training.session import Session
from stillroom.training.step import forward_backward, local_counts, seed_forward
from stillroom.training.stream import (
    HostBatch,
    to_batch,
    training_batches,
)
from stillroom.training.validate import score
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
        stop_on_signals() as stop,
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
    record = Record(session)
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
                session.say(step_line(session, step, figures))
            told_to_stop = session.any(stop.is_set()) and step < session.steps

        if due or told_to_stop:
            _require_finite(session, step)
        if due:
            best = evaluate(session, log, step, epoch, best)
            mode_of = -1
        if due or told_to_stop:
            _save(session, step, best)
        if told_to_stop:
            (session.folder / "requeue").touch()
            raise Stopped("told to stop", found=f"saved at step {step} of {session.steps}")


def _restore(session: Session) -> tuple[int, float]:
    """Return the step to go on from and the best score so far."""
    if not session.recipe.run.resume:
        return 0, -1.0
    if session.is_first:
        clear_leftovers(session.folder)
    folder, state = newest_checkpoint(session.folder, session.distiller, session.say)
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


def _require_finite(session: Session, step: int) -> None:
    """Raise FailureError, on every rank, rather than evaluate and save what is not finite."""
    for name, tensor in session.distiller.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise FailureError(
                f"the student is not finite after step {step}; nothing was saved of it",
                found=name,
                fix="a lower --optimizer.lr, or --precision fp32 or bf16",
            )


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
