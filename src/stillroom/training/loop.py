"""Stage 2: the loop, top to bottom: data, counts, forward, backward, step, log, evaluate, save.

Order, learning rate, temperature and randomness are functions of the step, so the position is all
that a resume needs besides tensors.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from math import inf
from pathlib import Path
from typing import Any

import torch

from stillroom.device_memory import is_out_of_memory
from stillroom.errors import FailureError, Stopped, first_line
from stillroom.jsonfile import read_json, write_bytes, write_json
from stillroom.losses import epoch_progress
from stillroom.os_errors import explain_os_errors
from stillroom.recipe import Recipe
from stillroom.signals import stop_on_signals
from stillroom.training.batchnorm import RunningBuffers
from stillroom.training.checkpoint import (
    clear_leftovers,
    load_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from stillroom.training.context import TrainContext
from stillroom.training.log import Log
from stillroom.training.memory import out_of_memory
from stillroom.training.meter import TermMeter, step_line
from stillroom.training.optimizer import learning_rate
from stillroom.training.parameters import drop_frozen_gradients, set_mode
from stillroom.training.receipt import describe, receipt
from stillroom.training.run_folder import claim_run
from stillroom.training.setup import prepare
from stillroom.training.step import local_counts, loss_factors, seed_forward, term_totals
from stillroom.training.stream import HostBatch, to_batch
from stillroom.training.validate import evaluate, selection_score


def train(recipe: Recipe) -> Path:
    """Train a student and return the run's folder.

    Raises UserError before any work for what cannot work, DamageError for a row that cannot be
    read, FailureError for a loss that is not finite or where disk or system fails, Stopped after a
    checkpoint when a signal asked to stop. Where memory runs out the UserError names the
    micro-batch that fits.
    """
    again = "then run the same command again, with --run.resume where there is a checkpoint"
    with explain_os_errors("training cannot go on", Path(recipe.run.out), "--run.out", again):
        context = prepare(recipe)
        began = time.perf_counter()
        with claim_run(context), stop_on_signals() as stop:
            step, best = _restore(context)
            context.print(describe(context))
            full = ""
            try:
                with (
                    Log(context.folder, step) if context.is_first else nullcontext() as log,
                    closing(context.stream(range(step, context.steps))) as stream,
                ):
                    _run_steps(context, stream, log, stop, step, best)
            except Stopped:
                context.leave()
                raise
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                full = first_line(error)
            if full:  # not within `except`: the traceback holds the step's tensors
                raise out_of_memory(context, full)
            _finish(context, time.perf_counter() - began)
            context.leave()
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
    recipe, accelerator, schedule = context.recipe, context.accelerator, context.schedule
    distiller, optimizer, terms = context.distiller, context.optimizer, recipe.terms
    device, micros = accelerator.device, schedule.micro_batches()
    meter, buffers = TermMeter(context), RunningBuffers(distiller, schedule.num_micro_batches)
    while step < context.steps:
        epoch = step // context.epoch_steps
        set_mode(context.model, distiller, recipe, epoch)

        # A row that cannot be read raises DamageError here; the launcher stops the other ranks.
        batches = [to_batch(next(stream), device, context.cache) for _ in micros]
        counts = context.reduce(local_counts(terms, batches, device))

        factors = loss_factors(terms, counts, schedule.world)
        progress = epoch_progress(epoch, recipe.epochs)
        totals = torch.zeros(len(terms), device=device)
        buffers.begin()
        for micro, batch in zip(micros, batches, strict=True):
            seed_forward(recipe.seed, step, micro)
            with nullcontext() if micro == micros[-1] else accelerator.no_sync(context.model):
                sums = term_totals(terms, context.model(batch.image), batch, progress)
                accelerator.backward((factors * sums).sum())
            buffers.keep(micro)
            totals += sums.detach()
        buffers.finish(context.reduce)

        rate = learning_rate(recipe.optimizer, step, context.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        drop_frozen_gradients(distiller, recipe, epoch)
        norm = accelerator.clip_grad_norm_(distiller.parameters(), recipe.optimizer.clip or inf)
        assert norm is not None
        optimizer.step()  # with a scaler (fp16) not where a gradient is not finite
        optimizer.zero_grad()
        step += 1

        meter.add(totals, counts, norm)
        due = step % (context.epoch_steps * recipe.run.evaluate_every) == 0 or step == context.steps
        told_to_stop = False
        if due or step % recipe.run.log_every == 0:
            figures = meter.figures(step) | {"lr": rate}
            if log is not None:
                log.write("train", step, epoch, figures)
                context.print(step_line(context, step, figures))
            told_to_stop = context.any(stop.is_set()) and step < context.steps
        if due or told_to_stop:
            _require_finite(context, step)
            best = evaluate(context, log, step, epoch, best) if due else best
            _save(context, step, best)
        if told_to_stop:
            (context.folder / "requeue").touch()
            raise Stopped("told to stop", found=f"saved at step {step} of {context.steps}")


def _restore(context: TrainContext) -> tuple[int, float]:
    """Return the step to go on from and the best score so far."""
    if not context.recipe.run.resume:
        return 0, -1.0
    found: tuple[Path, dict[str, Any]] | None = None
    if context.is_first:
        clear_leftovers(context.folder)
        found = newest_checkpoint(context.folder, context.print)
    # The other ranks do not look for themselves: a listing of theirs may be older.
    chosen = torch.tensor(found[1]["step"] if found else 0, device=context.accelerator.device)
    step = int(context.reduce(chosen))
    folder, state = found or read_checkpoint(context.folder, step)
    load_checkpoint(folder, context.distiller, context.optimizer.optimizer)
    scaler = context.accelerator.scaler
    if scaler is not None and state.get("scaler") is not None:
        scaler.load_state_dict(state["scaler"])
    context.print(f"resumed from {folder}")
    return step, state["best"]


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
    substituted = torch.tensor(context.dataset.substituted, device=context.accelerator.device)
    num_substituted = int(context.reduce(substituted))
    if not context.is_first:
        return
    (context.folder / "requeue").unlink(missing_ok=True)
    best = context.folder / "best"
    for name in ("student.safetensors", "student.json"):
        write_bytes(context.folder / name, (best / name).read_bytes())
    write_json(context.folder / "receipt.json", receipt(context, seconds, num_substituted))
    if num_substituted:
        print(
            f"{num_substituted} damaged rows were left out; the rows after them took their places"
        )
    score = selection_score(read_json(best / "student.json")["score"])
    why = "no validation split" if context.validation is None else "no labels to validate with"
    known = f"the last student, no score ({why})" if score is None else f"best {score:.4f}"
    print(f"done: {context.folder}, {known}")
