"""Everything that a plan is reckoned from: measured here, or given in its place."""

import math
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import UserError
from stillroom.extraction.process import ProcessContext
from stillroom.pictures.dataset import PictureSet
from stillroom.planning.arithmetic import Costs
from stillroom.planning.measure_codecs import measure_codecs, measure_shard
from stillroom.planning.measure_disk import measure_disk
from stillroom.planning.measure_student import measure_student, read_pictures
from stillroom.planning.measure_teachers import KEPT_ROWS, Answers, measure_teachers
from stillroom.recipe import Recipe

_TEACHERS, _STUDENT, _DISK = 0.4, 0.2, 0.1  # shares of the time; codecs have rows, not time


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What the user says instead of having it measured, and how long is measured; None = not said.

    Raises UserError for a number that is none.
    """

    gpus: int = 1
    pictures: int | None = None  # of the training split
    cores: int | None = None  # of each GPU
    disk_gb_per_s: float | None = None  # of all GPUs together, written and read
    teacher_ms: float | None = None  # a row
    student_ms: float | None = None  # a row
    pictures_measured: int = 200  # at most
    minutes: float = 4.0  # of measuring, about

    def __post_init__(self) -> None:
        for field in self.__dataclass_fields__:
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise UserError(
                    f"no such --{field.replace('_', '-')}", found=value, wanted="above 0"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The costs of a row, in words where each is from, and which codecs were not tried."""

    costs: Costs
    sources: tuple[str, ...]
    notes: tuple[str, ...]


def measure(
    recipe: Recipe,
    pictures: PictureSet,
    options: PlanOptions,
    process: ProcessContext,
    stop: threading.Event,
) -> Measured:
    """Run teachers, codecs, disk and student on a sample, in about the time that is allowed.

    Given teachers run all the same, on fewer rows, since the codecs need what they answer. Raises
    UserError for what neither stage could do, OSError, and Stopped.
    """
    limit_s, root, device = 60 * options.minutes, recipe.run.place(recipe.run.cache), process.device
    most, given = options.pictures_measured, options.disk_gb_per_s
    num_rows = most if options.teacher_ms is None else min(most, KEPT_ROWS)
    answers = measure_teachers(recipe, pictures, device, num_rows, _TEACHERS * limit_s, stop)
    there = next(place for place in (root, *root.absolute().parents) if place.exists())
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=there) as name:
        folder = Path(name)
        rates = (
            measure_disk(folder, _DISK * limit_s, stop) if given is None else (given, given, 0.0)
        )
        shard_s = measure_shard(folder, recipe, answers, device, stop)
        codecs, notes = measure_codecs(folder, recipe, answers, device, stop)
    batches, student_picture_ms = read_pictures(recipe, pictures)
    student_ms, steps = options.student_ms, 0
    if student_ms is None:
        limit_s *= _STUDENT
        student_ms, steps = measure_student(recipe, pictures, answers, batches, limit_s, stop)
    train = [shard for shard in pictures.shards if shard.split == "train"]
    costs = Costs(
        teacher_ms=options.teacher_ms or answers.teacher_ms,
        student_ms=student_ms,
        teacher_picture_ms=answers.picture_ms,
        student_picture_ms=student_picture_ms,
        picture_bytes=sum(shard.size for shard in train) / pictures.num_rows("train"),
        write_gb_per_s=rates[0],
        read_gb_per_s=rates[1],
        shard_s=shard_s,
        codecs=codecs,
        read_targets=frozenset(recipe.wanted_targets()),
    )
    sources = _sources(costs, options, process.device_name, answers, steps, rates[2])
    return Measured(costs=costs, sources=sources, notes=tuple(notes))


def _sources(
    costs: Costs,
    options: PlanOptions,
    device: str,
    answers: Answers,
    num_steps: int,
    disk_gb: float,
) -> tuple[str, ...]:
    rows, kept = answers.num_rows, len(answers.kept)
    teachers = "given" if options.teacher_ms else f"measured on {device}, {rows} rows"
    steps = f"measured on {device}, {num_steps} steps" if num_steps else "given"
    rates = f"measured, {disk_gb:.1f} GB" if disk_gb else "given"
    return (
        f"teachers  {costs.teacher_ms:.3g} ms a row ({teachers})",
        f"student   {costs.student_ms:.3g} ms a row ({steps})",
        f"pictures  {costs.teacher_picture_ms:.3g} ms of a core for the teachers,"
        f" {costs.student_picture_ms:.3g} ms for the student (measured)",
        f"disk      {costs.write_gb_per_s:.3g} GB/s written,"
        f" {costs.read_gb_per_s:.3g} GB/s read ({rates})",
        f"codecs    measured on {device}, at most 16 of {kept} rows that the teachers answered",
    )
