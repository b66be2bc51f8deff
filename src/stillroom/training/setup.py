"""Everything a run needs before its first step: devices, pictures, the cache that fits, the
distiller, what trains.

All that can be wrong is found here, before any real work.
"""

import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import parse_flag_from_env
from torch.nn.parallel import DistributedDataParallel

from stillroom.cache.folder import Cache
from stillroom.errors import UserError
from stillroom.losses import CountsClasses
from stillroom.pictures.class_pixels import class_pixels
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.recipe import Recipe
from stillroom.recipe_check import check
from stillroom.students.begin import begin_of, load_begin
from stillroom.students.distiller import Distiller, build_distiller, upstream_parameters
from stillroom.training.average import Average
from stillroom.training.context import TrainContext, run_folder
from stillroom.training.find_cache import find_cache
from stillroom.training.optimizer import make_optimizer
from stillroom.training.order import (
    MicroBatchSchedule,
    Order,
    RowOrder,
    WindowOrder,
    make_schedule,
)
from stillroom.training.parameters import frozen_parameters, parameters_in_parts
from stillroom.training.run_folder import added_epochs, require_free, stored_begin
from stillroom.training.running_weights import RunningWeights
from stillroom.training.step import seed_forward
from stillroom.training.stream import RowDataset
from stillroom.types import TargetSpec


def prepare(recipe: Recipe) -> TrainContext:
    """Check a recipe against pictures, cache and devices and build all that the loop needs; writes
    nothing. Raises UserError.
    """
    pictures = open_pictures(recipe.run.place(recipe.data.shards))
    check(recipe, pictures)
    num_rows = recipe.num_train_rows(pictures)
    _require_a_step(recipe, pictures, num_rows)
    accelerator = make_accelerator(recipe)
    recipe = with_class_counts(recipe, pictures, accelerator.main_process_first())
    require_free(recipe)
    recipe = _with_added_epochs(recipe, accelerator)
    _schedule(recipe, accelerator)  # what cannot be dealt to the ranks is refused first
    cache = find_cache(recipe, pictures, accelerator.is_main_process)
    dataset, validation = _sources(recipe, pictures, cache)
    if recipe.batch > len(dataset):
        raise UserError(
            "one step takes more rows than there are to train on",
            found=f"--batch {recipe.batch}, {len(dataset)} rows in {pictures.path}",
            fix="a smaller --batch (and --micro-batch), or a larger --data.label-share",
        )
    specs = {} if cache is None else cache.specs
    return make_context(recipe, accelerator, pictures, dataset, specs, num_rows, cache, validation)


def make_context(
    recipe: Recipe,
    accelerator: Accelerator,
    pictures: PictureSet,
    dataset: RowDataset,
    specs: Mapping[str, TargetSpec],
    num_rows: int,
    cache: Cache | None = None,
    validation: RowDataset | None = None,
) -> TrainContext:
    """Build the student for targets of these specs, its optimiser, and the rest of the context;
    `num_rows` are those of an epoch.
    """
    distiller = _distiller(recipe, specs, recipe.size_of(pictures), accelerator)
    begin = _begin(recipe, distiller)
    if recipe.channels_last:
        distiller.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if recipe.compile:
        distiller.compile()
    parts = parameters_in_parts(distiller, recipe)
    optimizer = make_optimizer(
        recipe.optimizer, distiller, accelerator.device, parts, recipe.freeze_lr
    )
    model, wrapped = accelerator.prepare(distiller, optimizer)
    if isinstance(model, DistributedDataParallel):
        # As an argument it would warn from torch 2.13 on, and its successor is unknown before.
        model.broadcast_buffers = False
    return TrainContext(
        recipe=recipe,
        accelerator=accelerator,
        pictures=pictures,
        cache=cache,
        dataset=dataset,
        validation=validation,
        order=order_of(recipe, dataset),
        schedule=_schedule(recipe, accelerator),
        num_rows=num_rows,
        distiller=distiller,
        model=model,
        optimizer=wrapped,
        average=None if recipe.ema is None else Average(distiller, recipe.ema),
        class_weights=RunningWeights(recipe.terms, accelerator.device),
        begin=begin,
    )


def order_of(recipe: Recipe, dataset: RowDataset) -> RowOrder:
    """Return in which order a recipe reads the rows of its training split."""
    if not recipe.data.window:
        return Order(rows=len(dataset), seed=recipe.seed)
    rows = tuple(count for _, count in dataset.places.shards)
    return WindowOrder(shard_rows=rows, window=recipe.data.window, seed=recipe.seed)


def with_class_counts(
    recipe: Recipe, pictures: PictureSet, in_turn: AbstractContextManager[Any]
) -> Recipe:
    """Return the recipe with the numbers of every term that asks for the pixels of each class;
    they are counted within `in_turn`, so that one of several ranks does it.
    """
    if not any(term.needs.class_counts for term in recipe.terms):
        return recipe
    if recipe.data.regions is not None:
        raise UserError(
            "classes are counted over whole masks, and here rows are regions of pictures",
            fix="give the weights as numbers: --terms.N.class-weights",
        )
    with in_turn:
        counts = class_pixels(pictures, recipe.data.label_share)
    terms = []
    for term in recipe.terms:
        if term.needs.class_counts:
            assert isinstance(term, CountsClasses), f"{term.label} has no with_class_counts"
            term = term.with_class_counts(counts)
        terms.append(term)
    return replace(recipe, terms=tuple(terms))


def _with_added_epochs(recipe: Recipe, accelerator: Accelerator) -> Recipe:
    """Return the recipe with the epochs that `--run.additional-epochs` asks for, as rank 0 finds
    the run: a listing of the others may be older.
    """
    if not recipe.run.additional_epochs:
        return recipe
    epochs = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    if accelerator.is_main_process:
        epochs += added_epochs(recipe)
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(epochs)
    return replace(recipe, epochs=int(epochs))


def _begin(recipe: Recipe, distiller: Distiller) -> dict[str, str] | None:
    """Let the student begin from another run's; a resume takes what was recorded of it, and needs
    it no more.
    """
    run = begin_of(recipe.student)
    if run is None:
        return None
    if recipe.run.resume:
        return stored_begin(run_folder(recipe))
    return {"run": run, "weights_sha256": load_begin(run, recipe.student, distiller.student)}


def _schedule(recipe: Recipe, accelerator: Accelerator) -> MicroBatchSchedule:
    rank, world = accelerator.process_index, accelerator.num_processes
    return make_schedule(recipe.batch, recipe.micro_batch, rank, world)


def _require_a_step(recipe: Recipe, pictures: PictureSet, rows: int) -> None:
    if recipe.batch > rows:
        raise UserError(
            "one step takes more rows than there are",
            found=f"--batch {recipe.batch}, {rows} training rows in {pictures.path}",
            fix="a smaller --batch (and --micro-batch), or more pictures",
        )


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Return this process's device and precision; raises UserError for what it does not have."""
    launch = {"launch": None, "fp32": "no"}.get(recipe.precision, recipe.precision)
    wanted = launch or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    no_cuda = not torch.cuda.is_available() and "no CUDA device"
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        no_cuda = "a launch on the CPU (use_cpu: true)"
    on_cpu = recipe.run.device == "cpu" or bool(no_cuda)
    if recipe.run.device == "cuda" and no_cuda:
        raise UserError("CUDA was asked for", found=no_cuda, fix="--run.device cpu")
    if wanted == "fp16" and on_cpu:
        raise UserError(
            "fp16 training needs a GPU",
            found="the CPU",
            fix="--precision fp32, or bf16, which a CPU can do",
        )
    # Of 1x1 and depthwise convolutions under channels-last pictures: strides of axes of length 1
    # that nothing depends on.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    # Not a round 600 s: Accelerate passes on what differs from that, and gloo's default is 1800 s.
    patience = timedelta(seconds=recipe.run.timeout_s, milliseconds=1)
    _require_tracker(recipe.run.tracker)
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=launch,
        kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=patience)],
        log_with=recipe.run.tracker,
        project_dir=run_folder(recipe),
    )
    # A process alone is given `cuda`, its tensors say `cuda:0`: tables are kept by device.
    device = torch.empty(0, device=accelerator.device).device
    accelerator.state.device = device  # pyright: ignore[reportAttributeAccessIssue]
    return accelerator


def _require_tracker(name: str | None) -> None:
    """Raise UserError for a tracker that Accelerate does not know or that is not installed."""
    known, there = list(LOGGER_TYPE_TO_CLASS), [str(one) for one in get_available_trackers()]
    if name is not None and name not in there:
        fix = f"pip install {name}" if name in known else f"one of {', '.join(known)}"
        found = ", ".join(there)
        raise UserError(f"there is no tracker {name} here", found=found, wanted=name, fix=fix)


def _sources(
    recipe: Recipe, pictures: PictureSet, cache: Cache | None
) -> tuple[RowDataset, RowDataset | None]:
    targets = recipe.wanted_targets()
    rows_of_split = partial(rows_for, recipe, pictures, cache=cache, targets=targets)
    dataset = rows_of_split("train", label_share=recipe.data.label_share, labelled_only=not targets)
    return dataset, rows_of_split("val") if pictures.shard_ids("val") else None


def rows_for(recipe: Recipe, pictures: PictureSet, split: str, **more: Any) -> RowDataset:
    """Return the rows of a split as a recipe looks at them; `more` as `RowDataset` takes it."""
    size, regions = recipe.size_of(pictures), recipe.data.regions
    return RowDataset(pictures, split, size=size, views=recipe.views, regions=regions, **more)


def _distiller(
    recipe: Recipe,
    specs: Mapping[str, TargetSpec],
    size: tuple[int, int],
    accelerator: Accelerator,
) -> Distiller:
    """Build the distiller with seeded weights; what is frozen for good asks for no gradient.

    `specs` are the targets that the terms read. Raises UserError for a term that does not fit.
    """
    with accelerator.main_process_first():
        recipe.student.prefetch()
    seed_forward(recipe.seed, -1, 0)
    regions = recipe.data.regions
    distiller = build_distiller(recipe.student, recipe.terms, specs, size, regions)
    for parameter in frozen_parameters(distiller, recipe, recipe.epochs - 1):
        parameter.requires_grad_(False)
    _refuse_idle_taps(recipe, distiller)
    return distiller


def _refuse_idle_taps(recipe: Recipe, distiller: Distiller) -> None:
    for tap in dict.fromkeys(name.split(">")[0] for name in distiller.outputs):
        if not upstream_parameters(distiller, tap):
            raise UserError(
                f"the tap {tap} is distilled, but nothing before it trains at any epoch:"
                " only a projection would learn, and that is thrown away",
                found=f"freeze {', '.join(recipe.freeze)}",
                fix="unfreeze it (--freeze-epochs N), or tap a later layer",
            )
