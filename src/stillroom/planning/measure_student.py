"""The student of a recipe in training steps on rows in memory: time a row, no target is read."""

import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from math import inf
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from stillroom.losses import epoch_progress
from stillroom.pictures.dataset import PictureSet
from stillroom.planning.measure_teachers import Answers
from stillroom.recipe import Recipe
from stillroom.signals import raise_if_stopped
from stillroom.students.distiller import Distiller
from stillroom.training.batchnorm import RunningBuffers
from stillroom.training.optimizer import make_optimizer
from stillroom.training.order import Order, make_schedule
from stillroom.training.parameters import drop_frozen_gradients, set_mode
from stillroom.training.setup import make_accelerator, make_distiller
from stillroom.training.step import local_counts, loss_factors, seed_forward, term_totals
from stillroom.training.stream import HostBatch, RowDataset, to_batch, training_batches
from stillroom.types import Batch, TargetSpec

_WARM_STEPS, _LEAST_STEPS, _MOST_STEPS = 2, 3, 30
_LEAST_ROWS = 32  # whose pictures are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainee:
    """A student and what trains it, in one process."""

    recipe: Recipe
    accelerator: Accelerator
    distiller: Distiller
    model: Any  # the same, as AMP wraps it
    optimizer: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentTimes:
    """Milliseconds a row of a step, and of one core for a picture; how many steps were measured."""

    student_ms: float
    picture_ms: float
    num_steps: int


def make_trainee(recipe: Recipe, pictures: PictureSet, specs: Mapping[str, TargetSpec]) -> Trainee:
    """Build the student and its optimiser as stage 2 does; errors as there."""
    accelerator = make_accelerator(recipe)
    distiller = make_distiller(recipe, specs, recipe.size_of(pictures), accelerator)
    optimizer = make_optimizer(recipe.optimizer, distiller, accelerator.device)
    model, wrapped = accelerator.prepare(distiller, optimizer)
    return Trainee(
        recipe=recipe,
        accelerator=accelerator,
        distiller=distiller,
        model=model,
        optimizer=wrapped,
    )


def train_step(trainee: Trainee, batches: list[Batch], step: int) -> Tensor:
    """Take one optimiser step over a whole batch, as the loop of stage 2 does in one process, and
    return the terms' totals; the learning rate stays.
    """
    recipe, distiller, accelerator = trainee.recipe, trainee.distiller, trainee.accelerator
    set_mode(trainee.model, distiller, recipe, 0)
    counts = local_counts(recipe.terms, batches, accelerator.device)
    factors = loss_factors(recipe.terms, counts, 1)
    buffers = RunningBuffers(distiller, len(batches))
    totals = torch.zeros(len(recipe.terms), device=accelerator.device)
    buffers.begin()
    for micro, batch in enumerate(batches):
        seed_forward(recipe.seed, step, micro)
        progress = epoch_progress(0, recipe.epochs)
        sums = term_totals(recipe.terms, trainee.model(batch.image), batch, progress)
        accelerator.backward((factors * sums).sum())
        buffers.keep(micro)
        totals += sums.detach()
    buffers.finish(lambda values: values)
    drop_frozen_gradients(distiller, recipe, 0)
    accelerator.clip_grad_norm_(distiller.parameters(), recipe.optimizer.clip or inf)
    trainee.optimizer.step()
    trainee.optimizer.zero_grad()
    return totals


def picture_stream(recipe: Recipe, pictures: PictureSet, steps: range) -> Any:
    """Yield the micro-batches of these steps without targets, as stage 2 reads them ahead."""
    dataset = RowDataset(
        pictures,
        "train",
        size=recipe.size_of(pictures),
        views=recipe.views,
        regions=recipe.data.regions,
        label_share=recipe.data.label_share,
    )
    return training_batches(
        dataset,
        Order(rows=len(dataset), seed=recipe.seed),
        make_schedule(recipe.batch, recipe.micro_batch, 0, 1),
        steps,
        augment=recipe.augment,
        seed=recipe.seed,
        workers=recipe.run.workers,
        pin=recipe.run.device != "cpu" and torch.cuda.is_available(),
    )


def measure_student(
    recipe: Recipe, pictures: PictureSet, answers: Answers, limit_s: float, stop: threading.Event
) -> StudentTimes:
    """Take steps until `limit_s` is over, at least a few, with pictures that are in memory and
    targets that are decoded; what warms up does not count. Errors as stage 2's.
    """
    specs = {spec.name: spec for spec in answers.specs}
    trainee = make_trainee(recipe, pictures, specs)
    hosts, picture_ms = read_pictures(recipe, pictures)
    targets = {name: answers.targets[name] for name in recipe.wanted_targets()}
    targets = {name: value.to(trainee.accelerator.device) for name, value in targets.items()}
    seconds: list[float] = []
    began = time.perf_counter()
    for step in range(_WARM_STEPS + _MOST_STEPS):
        if len(seconds) >= _WARM_STEPS + _LEAST_STEPS and time.perf_counter() - began > limit_s:
            break
        raise_if_stopped(stop, f"{len(seconds)} training steps were measured")
        batches = _with_targets(trainee, hosts, targets)
        seconds.append(_timed_step(trainee, hosts, batches, step))
    counted = seconds[_WARM_STEPS:]
    return StudentTimes(
        student_ms=1e3 * median(counted) / recipe.batch,
        picture_ms=picture_ms,
        num_steps=len(counted),
    )


def read_pictures(recipe: Recipe, pictures: PictureSet) -> tuple[list[HostBatch], float]:
    """Return the micro-batches of one step, and the ms of one core that a row of them took."""
    num_micros = recipe.batch // recipe.micro_batch
    steps = -(-_LEAST_ROWS // recipe.batch)
    with closing(picture_stream(recipe, pictures, range(steps))) as stream:
        began = time.process_time()  # of all the threads that read
        hosts = list(islice(stream, steps * num_micros))
        spent = time.process_time() - began
    return hosts[:num_micros], 1e3 * spent / (steps * recipe.batch)


def _with_targets(
    trainee: Trainee, hosts: list[HostBatch], targets: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """Return the decoded targets of each micro-batch: those of the kept rows in turn."""
    found, size = [], trainee.recipe.micro_batch
    for first in range(0, size * len(hosts), size):
        places = torch.arange(first, first + size)
        found.append({name: value[places % len(value)] for name, value in targets.items()})
    return found


def _timed_step(
    trainee: Trainee, hosts: list[HostBatch], targets: list[dict[str, Tensor]], step: int
) -> float:
    device = trainee.accelerator.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    batches = [to_batch(host, device, None) for host in hosts]
    for batch, known in zip(batches, targets, strict=True):
        batch.targets = known
    train_step(trainee, batches, step)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
