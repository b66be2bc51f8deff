"""What metrics.jsonl holds over the steps, as charts: of one run, or of several in each chart."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillroom.jsonfile import read_json_lines
from stillroom.metrics import SCORES
from stillroom.using.charts import Point, Series, chart
from stillroom.using.page import beside

_AT_END = "; schedules at their end"
_PLACE = ("kind", "step", "epoch")
_SCORES = {**SCORES, "teacher_miou": "teacher mIoU"}
_OTHERS = {
    "lr": "learning rate",
    "rows_per_s": "speed, pictures a second",
    "scale": "loss scale of fp16",
    "skipped_steps": "steps skipped by fp16",
}


def points(lines: Sequence[dict[str, Any]], kind: str, name: str) -> list[Point]:
    """Return (step, value) of one figure; values that are null or no numbers are left out."""
    pairs = ((line["step"], line.get(name)) for line in lines if line["kind"] == kind)
    return [(step, value) for step, value in pairs if isinstance(value, int | float)]


def run_charts(run: Path, classes: Sequence[str]) -> str:
    """Return the charts of one run: every figure of its metrics.jsonl."""
    lines = read_json_lines(run / "metrics.jsonl")
    names = [n for n in _names(lines) if n == "loss" or n.startswith("term_")]
    parts, note = [], "terms without their weights, on a logarithmic scale"
    for kind, title, more in (("train", "training", ""), ("val", "validation", _AT_END)):
        some = [_series(lines, kind, name) for name in names]
        parts.append(chart(f"{title} loss and terms", some, log=True, note=note + more))
    parts.append(chart("scores", [_series(lines, "val", name) for name in _SCORES]))
    for name, title in (("iou", "IoU of each class"), ("teacher_iou", "the teacher's IoU")):
        parts.append(chart(title, _of_classes(lines, name, classes)))
    for title, some in _groups(lines, {*names, *_SCORES}).items():
        parts.append(chart(title, [_series(lines, "train", name) for name in some]))
    return beside(parts)


def comparison_charts(runs: Sequence[tuple[str, int, Path]]) -> str:
    """Return a chart of each figure with a line for each run: (recipe, its number, folder). Runs of
    a recipe have its colour.
    """
    read = [
        (name, number, folder.name, read_json_lines(folder / "metrics.jsonl"))
        for name, number, folder in runs
    ]
    found = dict.fromkeys(name for *_, lines in read for name in _names(lines))
    names, parts = [n for n in {**_SCORES, **found} if n in found], []
    for kind, title in (("val", "validation"), ("train", "training")):
        for name in names:
            series, seen = [], Counter()
            for recipe, number, run, lines in read:
                line, label = points(lines, kind, name), f"{recipe}: {run}"
                series.append(Series(name=label, points=line, colour=number, dash=seen[number]))
                seen[number] += 1
            is_loss = name == "loss" or name.startswith("term_")
            parts.append(chart(f"{title}: {_title(name)}", series, log=is_loss))
    return beside(parts)


def _names(lines: Sequence[dict[str, Any]]) -> list[str]:
    return [n for n in dict.fromkeys(n for line in lines for n in line) if n not in _PLACE]


def _title(name: str) -> str:
    return {**_SCORES, **_OTHERS}.get(name) or name.removeprefix("term_").replace("_", " ")


def _series(lines: Sequence[dict[str, Any]], kind: str, name: str) -> Series:
    return Series(name=_title(name), points=points(lines, kind, name))


def _groups(lines: Sequence[dict[str, Any]], done: set[str]) -> dict[str, list[str]]:
    """Return the other figures by the title of their chart: temperatures share one."""
    groups: dict[str, list[str]] = {}
    for name in _names(lines):
        if name not in done:
            title = "temperature" if name.startswith("temperature") else _title(name)
            groups.setdefault(title, []).append(name)
    return groups


def _of_classes(lines: Sequence[dict[str, Any]], name: str, classes: Sequence[str]) -> list[Series]:
    rows = [(line["step"], line[name]) for line in lines if line.get(name)]
    return [
        Series(
            name=label,
            points=[(step, row[i]) for step, row in rows if i < len(row) and row[i] is not None],
        )
        for i, label in enumerate(classes)
    ]
