"""The table of a comparison as text, CSV and JSON, and its curves as PNG."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from stillroom.columns import figure, in_columns
from stillroom.jsonfile import write_bytes, write_json
from stillroom.metrics import SCORES
from stillroom.using.comparison import Row, differing

_LONGEST = 40  # characters of a recipe's value in the text
_HEAD = (
    *("", "recipe", "runs", "score", "foreground IoU", "parameters"),
    *("ms", "GFLOPs", "MB", "training s"),
)


def write_comparison(rows: Sequence[Row], out: Path) -> str:
    """Write comparison.txt, .csv, .json and .png into a folder, made where absent; return the
    text.
    """
    out.mkdir(parents=True, exist_ok=True)
    text, lines, fields = table_text(rows), figures(rows), differences(rows)
    columns = [*(name for name in lines[0] if name != "of_runs"), *fields]
    write_bytes(out / "comparison.txt", f"{text}\n".encode())
    with (out / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for i, line in enumerate(lines):
            writer.writerow(line | {name: short(values[i]) for name, values in fields.items()})
    write_json(out / "comparison.json", {"rows": lines, "differs": fields})
    draw_scores(rows, out / "comparison.png")
    return text


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the table's figures, a dict for each row; what is not known is None. Scores are
    means, with the standard deviation (n - 1) over the runs; times are medians, whatever else a
    machine did meanwhile.
    """
    found = []
    for row in rows:
        foreground = [run.foreground_iou for run in row.runs]
        line = {
            "role": row.role,
            "recipe": row.name,
            "runs": len(row.runs),
            "metric": row.metric and SCORES[row.metric],
            "score": _over(mean, row.scores),
            "score_spread": _over(stdev, row.scores, 2),
            "foreground_iou": _over(mean, foreground),
            "foreground_iou_spread": _over(stdev, foreground, 2),
            "parameters": row.runs[0].parameters if row.runs else row.teacher.get("parameters"),
            "flops": _evaluated(row, "flops"),
            "weights_bytes": _evaluated(row, "weights_bytes"),
            "ms": _over(median, [run.ms for run in row.runs]) or row.teacher.get("ms"),
            "training_s": _over(median, [run.training_s for run in row.runs]),
            "of_runs": {
                str(run.run): {"score": run.score, "ms": run.ms, "training_s": run.training_s}
                for run in row.runs
            },
        }
        found.append(line)
    return found


def _evaluated(row: Row, name: str) -> int | None:
    """Return what runs of one recipe have alike, from the first that was evaluated."""
    return next((run.evaluation[name] for run in row.runs if name in run.evaluation), None)


def _over(
    summary: Callable[[list[float]], float], values: Sequence[float | None], least: int = 1
) -> float | None:
    """Return the summary of the values that are known, None where these are fewer than `least`."""
    known = [value for value in values if value is not None]
    return summary(known) if len(known) >= least else None


def differences(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the fields of recipe.json that are not equal, with a value for each row: None for a
    teacher without a recipe.
    """
    recipes = [row.recipe for row in rows if row.recipe is not None]
    found = differing(recipes) if recipes else {}
    found.pop("name", None)
    for values in found.values():
        for i, row in enumerate(rows):
            if row.recipe is None:
                values.insert(i, None)
    return found


def short(value: Any) -> str:
    """Return a recipe's value in a few words; of a part its weight, class and target."""
    if isinstance(value, dict) and "class" in value:
        weight = f"{value['weight']:g} " if "weight" in value else ""
        return f"{weight}{value['class']}" + (f"({value['target']})" if value.get("target") else "")
    if isinstance(value, dict):
        return ", ".join(f"{name} {short(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(short, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"


def table_text(rows: Sequence[Row]) -> str:
    """Return the table for people; below it what differs, in the order of the rows."""
    text = in_columns(cells(rows), 2)
    if fields := differences(rows):
        values = [(n, *(_cut(short(v)) for v in values)) for n, values in fields.items()]
        values.insert(0, ("what differs", *(row.name for row in rows)))
        text += ["", *in_columns(values, len(values[0]))]
    return "\n".join(text)


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the table's lines, its head first; what no row knows has no column."""
    lines: list[tuple[str, ...]] = [_HEAD]
    for f in figures(rows):
        score = _with_spread(f["score"], f["score_spread"])
        lines.append(
            (
                f["role"],
                f["recipe"],
                f"{f['runs'] or '-'}",
                f"{f['metric']} {score}" if f["metric"] else "-",
                _with_spread(f["foreground_iou"], f["foreground_iou_spread"]),
                figure(f["parameters"], ","),
                figure(f["ms"], ".2f"),
                figure(f["flops"] and f["flops"] / 1e9, ".3g"),
                figure(f["weights_bytes"] and f["weights_bytes"] / 1e6, ".1f"),
                figure(f["training_s"], ".0f"),
            )
        )
    columns = zip(*lines, strict=True)
    known = [column for column in columns if set(column[1:]) != {"-"}]
    return [*zip(*known, strict=True)]


def _with_spread(value: float | None, spread: float | None) -> str:
    return figure(value) if spread is None else f"{value:.4f} ± {spread:.4f}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def draw_scores(rows: Sequence[Row], path: Path) -> None:
    """Draw each run's score over its steps, and each recipe's mean as a thick line."""
    from matplotlib.figure import Figure

    plot = Figure(figsize=(9, 5), layout="constrained")
    axes = plot.subplots()
    for number, row in enumerate(rows):
        colour, runs = f"C{number}", f"{len(row.runs)} run{'s' * (len(row.runs) != 1)}"
        label = f"{row.name} ({row.role}, {runs})"
        if not row.runs:
            axes.axhline(row.scores[0], color=colour, ls="--", label=label)
            continue
        curves = [dict(run.curve) for run in row.runs]
        for curve in curves if len(curves) > 1 else ():
            axes.plot(list(curve), list(curve.values()), "-", color=colour, lw=0.8, alpha=0.5)
        steps = sorted(set.intersection(*map(set, curves)))
        means = [mean(curve[step] for curve in curves) for step in steps]
        axes.plot(steps, means, "o-", color=colour, lw=2.2, ms=4, label=label)
    metrics = dict.fromkeys(SCORES[row.metric] for row in rows if row.metric)
    axes.set(xlabel="step", ylabel=" or ".join(metrics) or "score")
    axes.grid(alpha=0.3)
    if rows:
        axes.legend(fontsize=8)
    plot.savefig(path, dpi=110)
