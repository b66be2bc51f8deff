"""What `stillroom plan` does, in order: measure what is not given, reckon, recommend."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from stillroom.device_memory import is_out_of_memory
from stillroom.errors import UserError, first_line
from stillroom.extraction.cache_identity import pictures_identity
from stillroom.extraction.calibrate import NUM_ROWS
from stillroom.extraction.process import ProcessContext, process_context
from stillroom.os_errors import explain_os_errors, free_bytes
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.pictures.loader import num_cores
from stillroom.planning.arithmetic import Costs, Line, Setting, make_line, make_lines, recommend
from stillroom.planning.measure import Measured, PlanOptions, measure
from stillroom.recipe import Recipe
from stillroom.recipe_check import check
from stillroom.remote.store import is_url
from stillroom.signals import stop_on_signals
from stillroom.training.order import make_schedule

_AGAIN = "then run the same command again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was measured and given, what follows from it, and which choice of codecs to take."""

    recipe: Recipe
    measured: Measured
    setting: Setting
    own: Line  # the recipe's own codecs
    singles: dict[tuple[str, str], Line]  # one target kept otherwise, the others as the recipe says
    best: Line

    @property
    def costs(self) -> Costs:
        """What one row costs."""
        return self.measured.costs


def run_plan(recipe: Recipe, options: PlanOptions) -> Plan:
    """Measure and reckon; nothing that is written stays.

    Raises UserError for what neither stage could do, FailureError where disk or system fails,
    Stopped when a signal asked to stop.
    """
    pictures = open_pictures(recipe.run.place(recipe.data.shards))
    check(recipe, pictures)
    _require_targets(recipe)
    make_schedule(recipe.batch, recipe.micro_batch, 0, options.gpus)  # refuses as training would
    process = process_context(recipe.run.device, {})
    root = recipe.run.place(recipe.run.cache)
    with stop_on_signals() as stop, explain_os_errors("no plan can be made", root, again=_AGAIN):
        try:
            measured = measure(recipe, pictures, options, process, stop)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                "the memory ran out while rows were measured",
                found=f"--micro-batch {recipe.micro_batch}: {first_line(error):.200}",
                fix="a smaller --micro-batch",
            ) from None
    return reckon(recipe, measured, make_setting(recipe, pictures, options, process))


def reckon(recipe: Recipe, measured: Measured, setting: Setting) -> Plan:
    """Return the plan that follows from costs and a setting."""
    costs = measured.costs
    codecs = {name: next(iter(known)) for name, known in costs.codecs.items()}
    own, lines = make_line(costs, setting, codecs), make_lines(costs, setting)
    singles = {
        (name, text): make_line(costs, setting, {**codecs, name: text})
        for name, known in costs.codecs.items()
        for text in known
    }
    return Plan(
        recipe=recipe,
        measured=measured,
        setting=setting,
        own=own,
        singles=singles,
        best=recommend([own, *singles.values(), *lines], own, costs),
    )


def make_setting(
    recipe: Recipe, pictures: PictureSet, options: PlanOptions, process: ProcessContext
) -> Setting:
    """Return where and how long: of the recipe and this machine, as far as nothing else is said.

    What is given is taken to be another machine's: a device of its own beside the cores.
    """
    there = recipe.num_train_rows(pictures)
    num_rows = sum(shard["rows"] for shard in pictures_identity(pictures, recipe)["shards"])
    num_pictures = options.pictures or there
    threads = torch.get_num_threads() if process.device == "cpu" else 0
    return Setting(
        num_pictures=num_pictures,
        num_rows=round(num_rows * num_pictures / there),
        epochs=recipe.epochs,
        num_shards=math.ceil(len(pictures.shards) * num_pictures / there),
        fit_rows=min(NUM_ROWS, there),
        gpus=options.gpus,
        cores=options.cores or max(1, num_cores() // max(1, torch.cuda.device_count())),
        readers=recipe.run.num_workers,
        teacher_threads=threads if options.teacher_ms is None else 0,
        student_threads=threads if options.student_ms is None else 0,
        decode_on_cores=process.device == "cpu",
        free_bytes=math.inf
        if options.disk_gb_per_s is not None or is_url(recipe.run.cache)
        else float(free_bytes(Path(recipe.run.cache))),
    )


def _require_targets(recipe: Recipe) -> None:
    if not recipe.teachers:
        what = f"recipe {recipe.name!r} has no teacher, so there is nothing to cache"
        raise UserError(what, fix="stillroom train needs no cache of it")
    if not recipe.wanted_targets():
        raise UserError(
            f"no term of recipe {recipe.name!r} reads a target, so a cache would serve nothing",
            fix="add a distilled term, or leave the cache out",
        )
