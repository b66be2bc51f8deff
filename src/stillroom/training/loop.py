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
from stillroom.training.context import TrainContext
from stillroom.training.evaluation import evaluate
from stillroom.training.log import Log
from stillroom.training.meter import TermMeter, step_line
from stillroom.training.optimizer import learning_rate
from stillroom.training.parameters import average_buffers, frozen_parameters
from stillroom.training.receipt import describe, receipt
from stillroom.training.setup import prepare
from stillroom.training.step import forward_backward, local_counts, seed_forward
from stillroom.training.stream import (
    HostBatch,
    to_batch,
    training_batches,
)
from stillroom.training.validate import selection_score
from stillroom.types import Batch


def train(recipe: Recipe) -> Path:
    """Train a student and return the run's folder.

    Raises UserError before any work for what cannot work, DamageError for a row that cannot be
    read, FailureError for a loss that is not finite, Stopped after a checkpoint when a signal asked
    to stop.
    """
    context = prepare(recipe)
    began = time.perf_counter()
    step, best = _restore(context)
    context.print(describe(context))
    with (
        stop_on_signals() as stop,
        Log(context.folder, step) if context.is_first else nullcontext() as log,
        closing(_stream(context, step)) as stream,
    ):
        _run_steps(context, stream, log, stop, step, best)
    _finish(context, time.perf_counter() - began)
    return context.folder


def _run_steps(
    context: TrainContext,
    stream: Iterator[HostBatch],
    log: Log | None,
    stop: threading.Event,
    step: int,
    best: float,
) -> None:
    """Run the optimiser steps from `step` to the last."""
    recipe = context.recipe
    meter = TermMeter(context)
    mode_of = -1
    while step < context.steps:
        epoch = step // context.epoch_steps
        frozen = _is_frozen(recipe, epoch)
        if mode_of != epoch:
            _set_mode(context, frozen)
            mode_of = epoch

        batches, counts = _next_step(context, stream)
        totals = _forward_backward(context, step, epoch, batches, counts)
        rate = _update(context, step, frozen)
        average_buffers(context.distiller, context.schedule.world)
        step += 1

        meter.add(totals, counts)
        ends_epoch = step % context.epoch_steps == 0
        due = (ends_epoch and (epoch + 1) % recipe.run.evaluate_every == 0) or step == context.steps
        told_to_stop = False
        if due or step % recipe.run.log_every == 0:
            figures = meter.figures(step) | {"lr": rate}
            if log is not None:
                log.write("train", step, epoch, figures)
                context.print(step_line(context, step, figures))
            told_to_stop = context.any(stop.is_set()) and step < context.steps

        if due or told_to_stop:
            _require_finite(context, step)
        if due:
            best = evaluate(context, log, step, epoch, best)
            mode_of = -1
        if due or told_to_stop:
            _save(context, step, best)
        if told_to_stop:
            (context.folder / "requeue").touch()
            raise Stopped("told to stop", found=f"saved at step {step} of {context.steps}")


def _restore(context: TrainContext) -> tuple[int, float]:
    """Return the step to go on from and the best score so far."""
    if not context.recipe.run.resume:
        return 0, -1.0
    if context.is_first:
        clear_leftovers(context.folder)
    folder, state = newest_checkpoint(context.folder, context.distiller, context.print)
    load_checkpoint(folder, context.distiller, context.optimizer.optimizer)
    scaler = context.accelerator.scaler
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    context.print(f"resumed from {folder}")
    return state["step"], state["best"]


def _stream(context: TrainContext, step: int) -> Generator[HostBatch, None, None]:
    recipe = context.recipe
    return training_batches(
        context.dataset,
        context.order,
        context.schedule,
        range(step, context.steps),
        augment=recipe.augment,
        seed=recipe.seed,
        workers=recipe.run.workers,
        pin=context.accelerator.device.type == "cuda",
        may_substitute=recipe.on_damage == "substitute",
    )


def _next_step(context: TrainContext, stream: Iterator[HostBatch]) -> tuple[list[Batch], Tensor]:
    """Read all of this rank's micro-batches of a step; return them and each term's global count,
    (terms,).

    A row that cannot be read raises DamageError here; the launcher then stops the other ranks.
    """
    device = context.accelerator.device
    batches = [
        to_batch(next(stream), device, context.cache) for _ in context.schedule.micro_batches()
    ]
    return batches, context.reduce(local_counts(context.terms, batches, device))


def _forward_backward(
    context: TrainContext, step: int, epoch: int, batches: list[Batch], counts: Tensor
) -> Tensor:
    """Run this rank's micro-batches of a step; return the local totals, (terms,)."""
    micros, seed = context.schedule.micro_batches(), context.recipe.seed
    return forward_backward(
        context.model,
        context.terms,
        batches,
        counts,
        progress=epoch_progress(epoch, context.recipe.epochs),
        world=context.schedule.world,
        seed_micro=lambda i: seed_forward(seed, step, micros[i]),
        backward=context.accelerator.backward,
        no_sync=lambda: context.accelerator.no_sync(context.model),
    )


def _update(context: TrainContext, step: int, frozen: bool) -> float:
    """Clip and step; return the learning rate."""
    recipe, optimizer = context.recipe, context.optimizer
    rate = learning_rate(recipe.optimizer, step, context.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    if frozen:
        for _, parameter in frozen_parameters(context.distiller, recipe.freeze):
            parameter.grad = None
    if recipe.optimizer.clip:
        trained = [p for p in context.distiller.parameters() if p.grad is not None]
        context.accelerator.clip_grad_norm_(trained, recipe.optimizer.clip)
    optimizer.step()
    optimizer.zero_grad()
    return rate


def _is_frozen(recipe: Recipe, epoch: int) -> bool:
    """Return whether the parts named in `freeze` keep still in this epoch."""
    epochs = recipe.epochs if recipe.freeze_epochs is None else recipe.freeze_epochs
    return bool(recipe.freeze) and epoch < epochs


def _set_mode(context: TrainContext, frozen: bool) -> None:
    """Put the network into training mode, frozen parts and their BatchNorm into evaluation mode."""
    context.model.train()
    if not frozen:
        return
    for name, module in context.distiller.student.named_modules():
        if any(f".{part}." in f".{name}." for part in context.recipe.freeze):
            module.eval()


def _require_finite(context: TrainContext, step: int) -> None:
    """Raise FailureError, on every rank, rather than evaluate and save what is not finite."""
    for name, tensor in context.distiller.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise FailureError(
                f"the student is not finite after step {step}; nothing was saved of it",
                found=name,
                fix="a lower --optimizer.lr, or --precision fp32 or bf16",
            )


def _save(context: TrainContext, step: int, best: float) -> None:
    if context.is_first:
        scaler = context.accelerator.scaler
        state = {
            "step": step,
            "best": best,
            "scaler": None if scaler is None else scaler.state_dict(),
            "torch": str(torch.__version__),
        }
        save_checkpoint(
            context.folder,
            context.distiller,
            context.optimizer.optimizer,
            state,
            context.recipe.run.keep,
        )
    context.accelerator.wait_for_everyone()


def _finish(context: TrainContext, seconds: float) -> None:
    """Put the best student at the run's top, and the receipt."""
    substituted = int(
        context.reduce(
            torch.tensor(float(context.dataset.substituted), device=context.accelerator.device)
        )
    )
    if not context.is_first:
        return
    (context.folder / "requeue").unlink(missing_ok=True)
    best = context.folder / "best"
    for name in ("student.safetensors", "student.json"):
        write_bytes(context.folder / name, (best / name).read_bytes())
    write_json(context.folder / "receipt.json", receipt(context, seconds, substituted))
    if substituted:
        print(f"{substituted} damaged rows were left out; the rows after them took their places")
    best_score = selection_score(read_json(best / "student.json")["score"])
    print(f"done: {context.folder}, best {best_score:.4f}")
