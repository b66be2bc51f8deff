"""Students beside their teachers, each network alone: milliseconds, megabytes and mIoU of runs.

`python benchmarks/students.py SYSTEM=RUN,RUN... ...` takes evaluated runs, the teacher's first (or,
where that is no run, first one that was evaluated with `--teacher RECIPE`, which timed it), and
writes `benchmarks/results/students_<hardware>_<yyyymm>.json` and a plot, mIoU over milliseconds, a
line from each teacher to its students. One picture at a time, one thread, as the run saw pictures;
networks take turns, five rounds, the median counts.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from bench.machine import RESULTS, save

from stillroom import load_student
from stillroom.cli import run_command
from stillroom.jsonfile import read_json
from stillroom.types import whole_box
from stillroom.using.student import Trained

ROUNDS, CALLS = 5, 6


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("systems", nargs="+", metavar="SYSTEM=RUN,RUN...")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the figures")
    own = parser.parse_args()
    systems = {
        name: [Path(run) for run in runs.split(",")]
        for name, _, runs in (text.partition("=") for text in own.systems)
    }
    loaded = {run: load_student(run) for runs in systems.values() for run in runs}
    times: dict[Path, list[float]] = {run: [] for run in loaded}
    for _ in range(ROUNDS):
        for run, trained in loaded.items():
            times[run].append(_milliseconds(trained))
    figures = {
        name: [
            *_teachers(runs[0], loaded[runs[0]].size),
            *(_figures(run, loaded[run], times[run]) for run in runs),
        ]
        for name, runs in systems.items()
    }
    path = save("students", "python benchmarks/students.py", figures, own.results)
    _draw(figures, path.with_suffix(".png"))


@torch.inference_mode()
def _milliseconds(trained: Trained) -> float:
    image = torch.rand(1, 3, *trained.size)
    boxes = whole_box(trained.size) if trained.network.needs_boxes else None
    trained.network(image, boxes)
    began = time.perf_counter()
    for _ in range(CALLS):
        trained.network(image, boxes)
    return 1e3 * (time.perf_counter() - began) / CALLS


def _teachers(run: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the figures of the teachers that a run was evaluated beside, those with a score."""
    recipe = read_json(run / "recipe.json")["recipe"]
    paths = {one["target"]: one["path"] for one in recipe["teachers"]}
    return [
        {
            "run": f"teacher of {one['target']}",
            "size": list(size),
            "parameters": one["parameters"],
            "mb": round(Path(paths[one["target"]]).stat().st_size / 1e6, 2),
            "ms": round(one["ms"], 2),
            "score": round(one["miou"], 4),
        }
        for one in read_json(run / "evaluation.json").get("teachers", ())
        if one["miou"] is not None
    ]


def _figures(run: Path, trained: Trained, times: list[float]) -> dict[str, Any]:
    found = read_json(run / "evaluation.json")
    return {
        "run": run.name,
        "recipe": read_json(run / "student.json")["recipe"],
        "size": list(trained.size),
        "parameters": sum(p.numel() for p in trained.network.parameters()),
        "mb": round((run / "student.safetensors").stat().st_size / 1e6, 2),
        "ms": round(statistics.median(times), 2),
        "ms_spread": [round(min(times), 2), round(max(times), 2)],
        "score": round(found.get("target_iou", found["miou"]), 4),
    }


def _draw(figures: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for number, (system, (teacher, *students)) in enumerate(figures.items()):
        colour = f"C{number}"
        axes.plot(teacher["ms"], teacher["score"], "s", color=colour, ms=9, label=system)
        for student in students:
            x, y = (teacher["ms"], student["ms"]), (teacher["score"], student["score"])
            axes.plot(x, y, "-", color=colour, lw=0.7, alpha=0.6)
            axes.plot(student["ms"], student["score"], "o", color=colour, ms=6)
            text = student["run"].rstrip("0123456789").rstrip("-")  # without the seed
            place = {"xytext": (6, -3), "textcoords": "offset points", "fontsize": 8}
            axes.annotate(text, (student["ms"], student["score"]), **place)
    axes.set(
        xscale="log",
        xlabel="ms a picture, network alone, one thread",
        ylabel="mIoU (S4: target IoU)",
    )
    axes.grid(alpha=0.3)
    axes.legend(title="squares: teachers, circles: students", fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run_command(main)
