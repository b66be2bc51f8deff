"""What a run says of itself while it goes on: metrics.jsonl, TensorBoard, curves as PNG. Rank 0
only.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillroom.jsonfile import read_json_lines, write_bytes
from stillroom.metrics import SCORES
from stillroom.recipe import plain
from stillroom.training.context import TrainContext


class Log:
    """The record of one run; lines later than `step` are cut off when a run is resumed there."""

    def __init__(self, run: Path, step: int, trackers: Sequence[Any] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / "metrics.jsonl"
        self.lines = [line for line in read_metrics(run) if line["step"] <= step] if step else []
        text = "".join(_line(line) for line in self.lines)
        write_bytes(self.path, text.encode())
        self._trackers = trackers
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, kind: str, step: int, epoch: int, figures: dict[str, Any]) -> None:
        """Append one line and its scalars; figures that are not finite are written as null."""
        line = {"kind": kind, "step": step, "epoch": epoch, **figures}
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(line))
        numbers = (pair for pair in figures.items() if type(pair[1]) in (int, float))
        scalars = {f"{kind}/{name}": value for name, value in numbers}
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(scalars, step=step)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()
        for tracker in self._trackers:
            tracker.finish()


def start_trackers(context: TrainContext) -> Sequence[Any]:
    """Begin the run in the tracker that the recipe names, with its scalar settings; rank 0."""
    recipe, accelerator = context.recipe, context.accelerator
    if recipe.run.tracker is None:
        return ()
    fields = plain(recipe).items()
    settings = {name: value for name, value in fields if isinstance(value, int | float | str)}
    name = {"wandb": {"name": context.folder.name}}
    accelerator.init_trackers(recipe.name, config=settings, init_kwargs=name)
    return accelerator.trackers


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl; a last line that was cut off is left out."""
    return read_json_lines(run / "metrics.jsonl")


def write_history(lines: list[dict[str, Any]], path: Path) -> None:
    """Write one CSV line for each evaluation: the figures of the last training line before it, and
    its own as `val_*`; lists are left out.
    """
    rows, train = [], {}
    for line in lines:
        numbers = {n: v for n, v in _finite(line).items() if isinstance(v, int | float)}
        if line["kind"] == "train":
            train = numbers
        else:
            place = {name: numbers.pop(name) for name in ("step", "epoch")}
            rows.append({**place, **train, **{f"val_{n}": v for n, v in numbers.items()}, **place})
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw loss and mIoU over the steps."""
    from matplotlib.figure import Figure

    train = [line for line in lines if line["kind"] == "train"]
    val = [line for line in lines if line["kind"] == "val"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)

    def draw(axes: Any, lines: list[dict[str, Any]], name: str, style: str, **more: Any) -> None:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, **more)

    names = [n for n in (train[0] if train else {}) if n == "loss" or n.startswith("term_")]
    for name in names:
        width = 2 if name == "loss" else 1
        draw(left, train, name, "-", label=name.removeprefix("term_"), lw=width)
    left.set(xlabel="step", ylabel="training loss (terms unweighted)", yscale="log")
    curves = {**SCORES, "teacher_miou": "teacher mIoU"}
    for name, label in curves.items():
        draw(right, val, name, "--" if name == "teacher_miou" else "o-", label=label, ms=3)
    right.set(xlabel="step", ylabel="validation")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _line(figures: dict[str, Any]) -> str:
    return json.dumps(_finite(figures), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
