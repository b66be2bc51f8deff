"""The student of a recipe in training steps on rows in memory: time a row, no target is read."""

import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentTimes:
    """Milliseconds a row of a step, and of one core for a picture; how many steps were measured."""

    student_ms: float
    picture_ms: float
    num_steps: int


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
    recipe: Recipe, pictures: PictureSet, answers: Answers, limit_s: float, stop: threading.Event
) -> StudentTimes:
    """Take steps until `limit_s` is over, at least a few, with pictures that are in memory and
    targets that are decoded; what warms up does not count. Errors as stage 2's.
    """
    specs = {spec.name: spec for spec in answers.specs}
    context = context_for(recipe, pictures, specs)
    hosts, picture_ms = read_pictures(recipe, pictures)
    targets = {name: answers.targets[name] for name in recipe.wanted_targets()}
    targets = {name: value.to(context.accelerator.device) for name, value in targets.items()}
    seconds: list[float] = []
    began = time.perf_counter()
    for _ in range(_WARM_STEPS + _MOST_STEPS):
        if len(seconds) >= _WARM_STEPS + _LEAST_STEPS and time.perf_counter() - began > limit_s:
            break
        raise_if_stopped(stop, f"{len(seconds)} training steps were measured")
        batches = _with_targets(context, hosts, targets)
        seconds.append(_timed_step(context, hosts, batches))
    counted = seconds[_WARM_STEPS:]
    return StudentTimes(
        student_ms=1e3 * median(counted) / recipe.batch,
        picture_ms=picture_ms,
        num_steps=len(counted),
    )


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


def _with_targets(
    context: TrainContext, hosts: list[StoredBatch], targets: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """Return the decoded targets of each micro-batch: those of the kept rows in turn."""
    found, size = [], context.recipe.micro_batch
    for first in range(0, size * len(hosts), size):
        places = torch.arange(first, first + size)
        found.append({name: value[places % len(value)] for name, value in targets.items()})
    return found


def _timed_step(
    context: TrainContext, hosts: list[StoredBatch], targets: list[dict[str, Tensor]]
) -> float:
    device = context.accelerator.device
    wait_for(str(device))
    began = time.perf_counter()
    train_step(
        context,
        [
            replace(to_batch(h, device, None), targets=t)
            for h, t in zip(hosts, targets, strict=True)
        ],
    )
    wait_for(str(device))
    return time.perf_counter() - began
