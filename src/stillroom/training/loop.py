"""Stage 2: the loop, top to bottom: data, counts, forward, backward, step, log, evaluate, save.

Order, learning rate, temperature and randomness are functions of the step and of the evaluations so
far, so these are all that a resume needs besides tensors.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from stillroom.device_memory import is_out_of_memory
from stillroom.errors import FailureError, Stopped, first_line
from stillroom.jsonfile import write_bytes, write_json
from stillroom.losses import epoch_progress
from stillroom.os_errors import explain_os_errors
from stillroom.recipe import Recipe
from stillroom.signals import stop_on_signals
from stillroom.training.batches import countable_batch, decoded_batches, with_labels_on
from stillroom.training.batchnorm import RunningBuffers
from stillroom.training.checkpoint import (
    clear_leftovers,
    load_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from stillroom.training.context import TrainContext
from stillroom.training.evaluations import (
    Evaluation,
    balance,
    best_score,
    ends_early,
    num_without_improvement,
)
from stillroom.training.log import Log, start_trackers
from stillroom.training.memory import out_of_memory
from stillroom.training.meter import TermMeter
from stillroom.training.missing_ranks import name_missing_ranks
from stillroom.training.optimizer import learning_rate, set_rate
from stillroom.training.parameters import set_mode
from stillroom.training.progress import Progress
from stillroom.training.receipt import about_more_epochs, describe, receipt
from stillroom.training.run_folder import claim_run, is_finished
from stillroom.training.setup import prepare
from stillroom.training.step import (
    apply_gradient,
    forward_and_backward,
    loss_factors,
    step_counts,
    temperatures,
)
from stillroom.training.stop_request import StopRequest
from stillroom.training.stream import StoredBatch
from stillroom.training.validate import evaluate


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
        with claim_run(context), stop_on_signals(signal.SIGINT) as stop:
            step, evaluations, is_over = _restore(context)
            context.print(describe(context))
            full, meter = "", TermMeter(context)
            try:
                with (
                    _open_log(context, step) as log,
                    closing(context.stream(range(step, context.steps))) as stream,
                    Progress(context, step) as progress,
                    name_missing_ranks(context, progress),
                ):
                    if not is_over:
                        request = StopRequest(context, stop, step)
                        step = _run_steps(
                            context, stream, log, progress, meter, request, step, evaluations
                        )
            except Stopped:
                context.leave()
                raise
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                full = first_line(error)
            if full:  # not within `except`: the traceback holds the step's tensors
                raise out_of_memory(context, full)
            pace = {"seconds": round(time.perf_counter() - began, 1), **meter.summary()}
            _finish(context, step, evaluations, pace)
            context.leave()
    return context.folder


def _open_log(context: TrainContext, step: int) -> AbstractContextManager[Log | None]:
    if not context.is_first:
        return nullcontext()
    return Log(context.folder, step, start_trackers(context))


def _run_steps(
    context: TrainContext,
    stream: Iterator[StoredBatch],
    log: Log | None,
    progress: Progress,
    meter: TermMeter,
    request: StopRequest,
    step: int,
    evaluations: list[Evaluation],
) -> int:
    """Run the optimiser steps from `step` to the last, or to an early end; return how many are
    done.
    """
    recipe, accelerator, schedule = context.recipe, context.accelerator, context.schedule
    distiller, optimizer = context.distiller, context.optimizer
    device, num_micros = accelerator.device, len(schedule.micro_batches())
    buffers, names = RunningBuffers(distiller, schedule.num_micro_batches), context.counted_targets
    while step < context.steps:
        epoch = step // context.epoch_steps
        set_mode(context.model, distiller, recipe, epoch)

        # A row that cannot be read raises DamageError here; the launcher stops the other ranks.
        with meter.waiting():
            stored = list(islice(stream, num_micros))
        stored = [with_labels_on(one, device) for one in stored]
        counted = partial(countable_batch, device=device, cache=context.cache, counted=names)
        counts = step_counts(context, map(counted, stored))
        weights = recipe.term_weights(balance(recipe, evaluations))
        factors = loss_factors(weights, counts, schedule.world)
        batches = decoded_batches(stored, device, context.cache)
        totals = forward_and_backward(context, batches, factors, buffers, step)
        del stored, batches  # the next step is read into the memory of this one

        rate = learning_rate(recipe, context.moment(step, evaluations))
        set_rate(optimizer, rate)
        norm = apply_gradient(context, step)
        step += 1
        progress.step()
        meter.add(totals, counts, norm)
        due = step % (context.epoch_steps * recipe.run.evaluate_every) == 0 or step == context.steps
        has_line = due or step % recipe.run.log_every == 0
        told_to_stop = request.seen(step, has_line) and step < context.steps
        if has_line or told_to_stop:
            figures = meter.figures(step, weights) | {"lr": rate}
            figures |= temperatures(recipe.terms, epoch_progress(epoch, recipe.epochs))
            if log is not None:
                log.write("train", step, epoch, figures)
                progress.show(step, figures)
        if due or told_to_stop:
            progress.clear()
            _require_finite(context, step)
            if due:
                evaluations.append(evaluate(context, log, step, epoch, evaluations))
            _save(context, step, evaluations)
            meter.clear()
        if due and ends_early(recipe, evaluations):
            break
        if told_to_stop:
            raise _stopped(context, step)
    return step


def _stopped(context: TrainContext, step: int) -> Stopped:
    """Leave word for cluster scripts; return what is said of a run that was told to stop."""
    (context.folder / "requeue").touch()
    return Stopped(
        "told to stop",
        found=f"saved at step {step} of {context.steps}, in {context.folder}",
        fix="the same command with --run.resume goes on from there",
    )


def _restore(context: TrainContext) -> tuple[int, list[Evaluation], bool]:
    """Return the step to go on from, the evaluations so far, and whether the run is over: it has
    done all its steps, or was ended early and got no more epochs.
    """
    recipe = context.recipe
    if not recipe.run.resume:
        return 0, [], False
    found: tuple[Path, dict[str, Any]] | None = None
    if context.is_first:
        clear_leftovers(context.folder)
        found = newest_checkpoint(context.folder, print)
    # The other ranks do not look for themselves: a listing of theirs may be older.
    chosen = torch.tensor(found[1]["step"] if found else 0, device=context.accelerator.device)
    step = int(context.reduce(chosen))
    folder, state = found or read_checkpoint(context.folder, step)
    load_checkpoint(folder, context.distiller, context.optimizer.optimizer, context.average)
    context.class_weights.restore(state.get("class_weights", {}))
    scaler = context.accelerator.scaler
    if scaler is not None and state.get("scaler") is not None:
        scaler.load_state_dict(state["scaler"])
    context.print(f"resumed from {folder}")
    evaluations, epochs = state["evaluations"], state["epochs"]
    if epochs != recipe.epochs:
        context.print(about_more_epochs(context, epochs, step, evaluations))
    is_over = step == context.steps or (epochs == recipe.epochs and ends_early(recipe, evaluations))
    return step, evaluations, is_over


def _require_finite(context: TrainContext, step: int) -> None:
    """Raise FailureError, on every rank, rather than evaluate and save what is not finite."""
    for name, tensor in context.distiller.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise FailureError(
                f"the student is not finite after step {step}; nothing was saved of it",
                found=name,
                fix="a lower --optimizer.lr, or --precision fp32 or bf16",
            )


def _save(context: TrainContext, step: int, evaluations: list[Evaluation]) -> None:
    if context.is_first:
        scaler = context.accelerator.scaler
        state = {
            "step": step,
            "epochs": context.recipe.epochs,
            "evaluations": evaluations,
            "class_weights": context.class_weights.state(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "torch": str(torch.__version__),
        }
        save_checkpoint(
            context.folder,
            context.distiller,
            context.optimizer.optimizer,
            state,
            context.recipe.run.keep,
            context.average,
        )
    context.accelerator.wait_for_everyone()


def _finish(
    context: TrainContext, step: int, evaluations: list[Evaluation], pace: dict[str, float]
) -> None:
    """Put the best student at the run's top, and the receipt; of a run that was finished already
    both stay as they are.
    """
    read = [context.dataset.substituted, context.dataset.num_bytes]
    device = context.accelerator.device
    num_substituted, num_bytes = context.reduce(torch.tensor(read, device=device)).tolist()
    if not context.is_first:
        return
    if context.recipe.run.resume and is_finished(context.folder, context.recipe.epochs):
        print(f"{context.folder} was finished; --run.additional-epochs N goes on with it")
        return
    (context.folder / "requeue").unlink(missing_ok=True)
    best = context.folder / "best"
    for name in ("student.safetensors", "student.json"):
        write_bytes(context.folder / name, (best / name).read_bytes())
    pace = {**pace, "read_mb": round(num_bytes / 1e6, 1)}
    write_json(context.folder / "receipt.json", receipt(context, step, pace, num_substituted))
    if num_substituted:
        print(
            f"{num_substituted} damaged rows were left out; the rows after them took their places"
        )
    if step < context.steps:
        waited = num_without_improvement(evaluations)
        print(f"ended early, at step {step} of {context.steps}: {waited} evaluations, none better")
    score = best_score(evaluations)
    why = "no validation split" if context.validation is None else "no labels to validate with"
    known = f"the last student, no score ({why})" if score < 0 else f"best {score:.4f}"
    print(f"done: {context.folder}, {known}")
