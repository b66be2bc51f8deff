"""Students side by side: finished runs, one row for each recipe, with what differs between the
recipes.

Runs of one recipe are those whose recipe.json differs in the seed alone. A run that is another's
teacher is a teacher, one that read a cache was trained with a teacher, any other without.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from stillroom.errors import UserError
from stillroom.jsonfile import digest, read_json, read_json_lines
from stillroom.metrics import SCORES
from stillroom.networks.finished_run import DESCRIPTION, require_finished
from stillroom.using.charts import Point
from stillroom.using.curves import points

ROLES = ("teacher", "without", "with")


class _Recipe(TypedDict):
    recipe: dict[str, Any]


class _Score(TypedDict):
    miou: float | None
    iou: list[float | None] | None
    agreement: float | None
    teacher_miou: float | None


class _About(TypedDict):
    classes: list[str]
    score: _Score


class _Receipt(TypedDict):
    cache: dict[str, str] | None
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What a finished run's files say of it; None where they do not."""

    run: Path
    recipe: dict[str, Any]  # recipe.json, without the seed
    metric: str | None  # a key of SCORES
    score: float | None  # of the best evaluation
    foreground_iou: float | None  # of the second of two classes
    teacher_miou: float | None
    has_cache: bool
    parameters: int
    evaluation: dict[str, Any]  # evaluation.json, as stillroom evaluate wrote it; empty without
    training_s: float  # of all steps and the evaluations between them, whatever the resumes
    curve: tuple[Point, ...]  # step, score

    @property
    def ms(self) -> float | None:
        """Milliseconds of a picture."""
        return self.evaluation.get("ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The runs of one recipe; of a teacher that is no run of ours only the score is known."""

    role: str
    name: str
    metric: str | None
    scores: tuple[float, ...]
    recipe: dict[str, Any] | None = None
    runs: tuple[RunFigures, ...] = ()
    teacher: dict[str, Any] = field(default_factory=dict)  # as evaluate --teacher measured it

    @property
    def label(self) -> str:
        """Its role and name."""
        return f"{self.role}: {self.name}"


def read_run(run: Path) -> RunFigures:
    """Read a finished run; UserError where it is not finished, DamageError for damaged files."""
    require_finished(run, ("receipt.json", DESCRIPTION))
    about, receipt = (
        read_json(run / "student.json", _About),
        read_json(run / "receipt.json", _Receipt),
    )
    recipe, score = read_json(run / "recipe.json", _Recipe)["recipe"], about["score"]
    metric = next((name for name in SCORES if score.get(name) is not None), None)
    timed, iou = run / "evaluation.json", score["iou"]
    training_s, curve = _read_metrics(run, metric, recipe["batch"])
    return RunFigures(
        run=run,
        recipe={name: value for name, value in recipe.items() if name != "seed"},
        metric=metric,
        score=None if metric is None else score[metric],
        foreground_iou=iou[1] if iou and len(about["classes"]) == 2 else None,
        teacher_miou=score["teacher_miou"],
        has_cache=receipt["cache"] is not None,
        parameters=receipt["parameters"],
        evaluation=read_json(timed) if timed.is_file() else {},
        training_s=training_s,
        curve=curve,
    )


def _read_metrics(run: Path, metric: str | None, batch: int) -> tuple[float, tuple[Point, ...]]:
    """Return seconds of training, from the rates (a receipt knows the last resume only), and the
    score's curve.
    """
    lines = read_json_lines(run / "metrics.jsonl")
    seconds, before = 0.0, 0.0
    for step, rate in points(lines, "train", "rows_per_s"):
        if rate:
            seconds += (step - before) * batch / rate
            before = step
    return seconds, tuple(points(lines, "val", metric)) if metric else ()


def compare(folders: Sequence[Path]) -> list[Row]:
    """Return a row for each recipe of these runs: teachers first, then without, then with."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice", found=" ".join(map(str, folders)))
    groups: dict[str, list[RunFigures]] = {}
    for run in map(read_run, folders):
        groups.setdefault(digest(run.recipe), []).append(run)
    teachers = {name for group in groups.values() for name in _teacher_runs(group[0].recipe)}
    rows: list[Row] = []
    for group in groups.values():
        rows.append(_row(group, teachers, [row.name for row in rows]))
        taught = group[0].teacher_miou
        if taught is not None and not _teacher_runs(group[0].recipe) & {f.name for f in folders}:
            name = f"teacher of {rows[-1].name}"
            known = (one for run in group for one in run.evaluation.get("teachers", ()))
            measured = next((one for one in known if one["miou"] is not None), {})
            row = Row(role="teacher", name=name, metric="miou", scores=(taught,), teacher=measured)
            rows.append(row)
    return sorted(rows, key=lambda row: ROLES.index(row.role))


def _row(group: Sequence[RunFigures], teachers: set[str], names: Sequence[str]) -> Row:
    first = group[0]
    is_teacher = any(run.run.name in teachers for run in group)
    own = first.recipe["name"]
    number = 1 + sum(name.partition(" #")[0] == own for name in names)
    return Row(
        role="teacher" if is_teacher else "with" if first.has_cache else "without",
        name=own if number == 1 else f"{own} #{number}",
        metric=first.metric,
        scores=tuple(run.score for run in group if run.score is not None),
        recipe=first.recipe,
        runs=tuple(group),
    )


def _teacher_runs(recipe: dict[str, Any]) -> set[str]:
    return {Path(t["path"]).name for t in recipe["teachers"] if t["class"] == "RunTeacher"}


def differing(values: Sequence[Any], name: str = "") -> dict[str, list[Any]]:
    """Return the fields that are not equal in all recipes, by dotted name, with each one's value.

    Where parts are of different classes, or lists of different parts, they differ as a whole.
    """
    if all(value == values[0] for value in values):
        return {}
    if all(isinstance(v, list) and all(isinstance(i, dict) for i in v) for v in values):
        inside = [{f"{i}": item for i, item in enumerate(value)} for value in values]
        classes = {tuple(item.get("class") for item in value) for value in values}
    else:
        inside = [value for value in values if isinstance(value, dict)]
        classes = {value.get("class") for value in inside}
    if len(inside) < len(values) or len(classes) > 1:
        return {name: list(values)}
    found: dict[str, list[Any]] = {}
    for member in dict.fromkeys(member for value in inside for member in value):
        dotted = f"{name}.{member}" if name else member
        found |= differing([value.get(member) for value in inside], dotted)
    return found
