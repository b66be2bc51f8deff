"""comparison.html: the table, scores over time, pictures and curves of several runs in one page."""

from collections.abc import Sequence
from pathlib import Path

from stillroom.errors import UserError
from stillroom.jsonfile import write_bytes
from stillroom.using.browse import viewer
from stillroom.using.cached_masks import CachedMasks, find_masks
from stillroom.using.charts import Series, chart
from stillroom.using.comparison import Row
from stillroom.using.comparison_table import cells, differences, figures, short
from stillroom.using.curves import comparison_charts
from stillroom.using.evaluation import open_data
from stillroom.using.page import beside, lines, page, paragraph, table
from stillroom.using.student import load_student


def write_comparison_page(
    rows: Sequence[Row], out: Path, shards: Path | None, cache: Path, code: str | None = None
) -> Path:
    """Write `comparison.html` into a folder that is there, and return its path.

    Pictures are those of `shards`, or of the last run; where there are none the page says why.
    """
    try:
        seen = _pictures(rows, shards, cache, code)
    except UserError as error:
        seen = lines([f"There are no pictures here: {error.what}."])
        print(f"no pictures in {out / 'comparison.html'}: {error.what}", flush=True)
    head, *body = cells(rows)
    fields = differences(rows)
    settings = [[name, *map(short, values)] for name, values in fields.items()]
    names = [row.name for row in rows]
    runs = [(row.name, i, run.run) for i, row in enumerate(rows) for run in row.runs]
    note = "Scores are means over a recipe's runs, ± the standard deviation; times are medians."
    sections = [
        ("Table", table(head, body, 2) + paragraph(note)),
        ("Score over time", _scatter(rows)),
        ("Settings that differ", table(["setting", *names], settings, 1 + len(rows))),
        ("Pictures", seen),
        ("Curves", comparison_charts(runs)),
    ]
    about = f"{len(runs)} runs of {len(rows)} recipes or teachers, side by side."
    write_bytes(out / "comparison.html", page("Comparison", about, sections).encode())
    return out / "comparison.html"


def _scatter(rows: Sequence[Row]) -> str:
    series = [
        Series(name=row.label, points=[(f["ms"], f["score"])], marks=True)
        for row, f in zip(rows, figures(rows), strict=True)
        if f["ms"] is not None and f["score"] is not None
    ]
    return beside([chart("score over time", series, x="ms a picture, batch 1 on a CPU")])


def _pictures(rows: Sequence[Row], shards: Path | None, cache: Path, code: str | None) -> str:
    """Return the viewer with the first run of each recipe; the worst are the last one's."""
    students = {row.label: load_student(row.runs[0].run, code) for row in rows if row.runs}
    last = [row.runs[0] for row in rows if row.runs][-1]
    label, trained = [*students.items()][-1]
    pictures, evaluation = open_data(trained, shards), last.evaluation
    if evaluation.get("pictures") != pictures.digest or not evaluation.get("picture_miou"):
        raise UserError(f"{last.run} was not evaluated on them: stillroom evaluate {last.run}")
    alike = (trained.size, trained.num_classes)
    same = {n: s for n, s in students.items() if (s.size, s.num_classes) == alike}
    split, scores = evaluation["split"], [*evaluation["picture_miou"].items()]
    masks = [find_masks(student, pictures, split, cache)[0] for student in same.values()]
    teacher: CachedMasks | None = next((found for found in masks if found is not None), None)
    others = [name for name in students if name not in same]
    left_out = [f"{name} works at another size or on other classes." for name in others]
    return (
        paragraph(f"Of each recipe its first run. Figures of pictures are the mIoU of {label}.")
        + lines(left_out)
        + viewer(same, pictures, split, scores, teacher)
    )
