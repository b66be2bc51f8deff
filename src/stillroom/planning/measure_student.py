"""The student of a recipe in training steps on rows in memory: time a row, no target is read."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from statistics import median

import torch
from torch import Tensor

from stillroom.pictures.dataset import PictureSet
from stillroom.planning.measure_teachers import Answers, wait_for
from stillroom.recipe import Recipe
from stillroom.signals import raise_if_stopped
from stillroom.training.batches import to_batch
from stillroom.training.batchnorm import RunningBuffers
from stillroom.training.context import TrainContext
from stillroom.training.order import make_schedule
from stillroom.training.parameters import set_mode
from stillroom.training.setup import (
    make_accelerator,
    make_context,
    order_of,
    rows_for,
    with_class_counts,
)
from stillroom.training.step import (
    apply_gradient,
    forward_and_backward,
    loss_factors,
    step_counts,
)
from stillroom.training.stream import RowDataset, StoredBatch, training_batches
from stillroom.types import Batch, TargetSpec

_WARM_STEPS, _LEAST_STEPS, _MOST_STEPS = 2, 3, 30
_LEAST_ROWS = 32  # whose pictures are read


def context_for(
    recipe: Recipe, pictures: PictureSet, specs: Mapping[str, TargetSpec]
) -> TrainContext:
    """Return stage 2's context of rows without targets, for a student that fits such targets."""
    accelerator = make_accelerator(recipe)
    recipe = with_class_counts(recipe, pictures, accelerator.main_process_first())
    rows, num_rows = _pictures_of(recipe, pictures), recipe.num_train_rows(pictures)
    return make_context(recipe, accelerator, pictures, rows, specs, num_rows)


def _pictures_of(recipe: Recipe, pictures: PictureSet) -> RowDataset:
    """Return the training rows, all of them, without targets."""
    return rows_for(recipe, pictures, "train", label_share=recipe.data.label_share)


def train_step(context: TrainContext, batches: list[Batch]) -> Tensor:
    """Take one optimiser step as the loop of stage 2 takes its first and return the terms' totals;
    the learning rate stays.
    """
    recipe, distiller = context.recipe, context.distiller
    set_mode(context.model, distiller, recipe, 0)
    counts = step_counts(context, batches)
    factors = loss_factors(recipe.term_weights(), counts, 1)
    buffers = RunningBuffers(distiller, len(batches))
    totals = forward_and_backward(context, batches, factors, buffers, 0)
    apply_gradient(context, 0)
    return totals


def measure_student(
    recipe: Recipe,
    pictures: PictureSet,
    answers: Answers,
    hosts: Sequence[StoredBatch],
    limit_s: float,
    stop: threading.Event,
) -> tuple[float, int]:
    """Take steps on these micro-batches until `limit_s` is over, at least a few, with targets that
    are decoded; what warms up does not count. Return the ms a row and how many steps were measured.
    Errors as stage 2's.
    """
    context = context_for(recipe, pictures, {spec.name: spec for spec in answers.specs})
    device = context.accelerator.device
    targets = [_targets(context, answers, i) for i in range(len(hosts))]
    seconds: list[float] = []
    began = time.perf_counter()
    for _ in range(_WARM_STEPS + _MOST_STEPS):
        if len(seconds) >= _WARM_STEPS + _LEAST_STEPS and time.perf_counter() - began > limit_s:
            break
        raise_if_stopped(stop, f"{len(seconds)} training steps were measured")
        wait_for(str(device))
        start = time.perf_counter()
        batches = [to_batch(host, device, None) for host in hosts]
        pairs = zip(batches, targets, strict=True)
        train_step(context, [replace(batch, targets=known) for batch, known in pairs])
        wait_for(str(device))
        seconds.append(time.perf_counter() - start)
    counted = seconds[_WARM_STEPS:]
    return 1e3 * median(counted) / recipe.batch, len(counted)


def _targets(context: TrainContext, answers: Answers, number: int) -> dict[str, Tensor]:
    """Return the decoded targets of a micro-batch: those of the kept rows in turn."""
    recipe, device = context.recipe, context.accelerator.device
    places = torch.arange(recipe.micro_batch) + number * recipe.micro_batch
    wanted = {name: answers.targets[name] for name in recipe.wanted_targets()}
    return {name: value[places % len(value)].to(device) for name, value in wanted.items()}


def read_pictures(recipe: Recipe, pictures: PictureSet) -> tuple[list[StoredBatch], float]:
    """Return the micro-batches of one step, and the ms of one core that a row of them took."""
    dataset, num_micros = _pictures_of(recipe, pictures), recipe.batch // recipe.micro_batch
    steps = -(-_LEAST_ROWS // recipe.batch)
    stream = training_batches(
        dataset,
        order_of(recipe, dataset),
        make_schedule(recipe.batch, recipe.micro_batch, 0, 1),
        range(steps),
        augment=recipe.augment,
        seed=recipe.seed,
        workers=recipe.run.num_workers,
        pin=recipe.run.device != "cpu" and torch.cuda.is_available(),
    )
    with closing(stream):
        began = time.process_time()  # of all the threads that read
        hosts = list(islice(stream, steps * num_micros))
        spent = time.process_time() - began
    return hosts[:num_micros], 1e3 * spent / (steps * recipe.batch)
