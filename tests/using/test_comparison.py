"""Runs are grouped by recipe, means and spreads are those of statistics by hand, and what differs
is named.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.errors import UserError
from stillroom.jsonfile import read_json, write_json
from stillroom.using.comparison import compare, differing
from stillroom.using.comparison_table import figures, short, table_text, write_comparison


def write_run(folder: Path, recipe: dict, score: dict, *, classes=2, cache=None, ms=None) -> Path:
    """What a finished run's files say, as far as a comparison reads them."""
    folder.mkdir(parents=True)
    given = {"miou": None, "iou": None, "agreement": None, "teacher_miou": None, **score}
    names = [f"class {number}" for number in range(classes)]
    write_json(folder / "student.json", {"classes": names, "score": given})
    write_json(folder / "receipt.json", {"cache": cache and {"name": cache}, "parameters": 1000})
    write_json(folder / "recipe.json", {"recipe": {"teachers": [], "batch": 8, **recipe}})
    if ms is not None:
        write_json(
            folder / "evaluation.json",
            {"ms": ms, "flops": 2_000_000_000, "weights_bytes": 4_000_000},
        )
    name = "miou" if given["miou"] is not None else "agreement"
    lines = [
        {"kind": "train", "step": 2, "rows_per_s": 4.0},
        {"kind": "val", "step": 2, name: 0.1},
        {"kind": "train", "step": 5, "rows_per_s": 8.0},
        {"kind": "val", "step": 5, name: given[name]},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


PLAIN = {"name": "plain", "seed": 0, "optimizer": {"class": "Adam", "lr": 0.1}, "terms": []}


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Two runs without a teacher, one with, and the teacher."""
    taught = {"class": "RunTeacher", "path": "elsewhere/teacher", "target": "t"}
    term = {"class": "SoftKL", "target": "t", "weight": 0.5}
    distilled = {**PLAIN, "name": "with", "teachers": [taught], "terms": [term]}
    teacher = {**PLAIN, "name": "big", "optimizer": {"class": "Adam", "lr": 0.2}}
    return [
        write_run(tmp_path / "a", PLAIN, {"miou": 0.5, "iou": [0.7, 0.3]}, ms=2.0),
        write_run(tmp_path / "b", distilled, {"miou": 0.6, "iou": [0.8, 0.4]}, cache="c"),
        write_run(tmp_path / "c", {**PLAIN, "seed": 1}, {"miou": 0.7, "iou": [0.9, 0.5]}, ms=4.0),
        write_run(tmp_path / "teacher", teacher, {"miou": 0.8, "iou": [0.9, 0.7]}),
    ]


def test_rows_are_teacher_without_with_and_hold_mean_and_spread(runs):
    rows = compare(runs)
    assert [(row.role, row.name) for row in rows] == [
        ("teacher", "big"),
        ("without", "plain"),
        ("with", "with"),
    ]
    found = figures(rows)[1]
    assert found.pop("of_runs") == {
        str(runs[0]): {"score": 0.5, "ms": 2.0, "training_s": 7.0},  # 2 * 8 / 4 + 3 * 8 / 8
        str(runs[2]): {"score": 0.7, "ms": 4.0, "training_s": 7.0},
    }
    assert found == pytest.approx(
        {
            "role": "without",
            "recipe": "plain",
            "runs": 2,
            "metric": "mIoU",
            "score": 0.6,
            "score_spread": 0.02**0.5,  # (0.1^2 + 0.1^2) / (2 - 1)
            "foreground_iou": 0.4,
            "foreground_iou_spread": 0.02**0.5,
            "parameters": 1000,
            "flops": 2e9,
            "weights_bytes": 4e6,
            "ms": 3.0,
            "training_s": 7.0,
        }
    )
    alone = figures(rows)[0]
    assert alone["score"] == 0.8 and alone["score_spread"] is None and alone["ms"] is None


def test_without_labels_the_score_is_agreement(tmp_path):
    run = write_run(tmp_path / "a", PLAIN, {"agreement": 0.9}, classes=0, cache="c")
    [found] = figures(compare([run]))
    assert found["metric"] == "agreement" and found["score"] == 0.9
    assert found["foreground_iou"] is None
    assert "agreement 0.9000" in table_text(compare([run]))


def test_a_teacher_that_is_no_run_has_its_score_from_those_that_it_taught(tmp_path):
    taught = {"class": "OnnxTeacher", "path": "models/a", "target": "t"}
    recipe = {**PLAIN, "teachers": [taught]}
    score = {"miou": 0.6, "iou": [0.6, 0.6], "teacher_miou": 0.75}
    rows = compare([write_run(tmp_path / "a", recipe, score, cache="c")])
    assert [(row.role, row.name, row.scores) for row in rows] == [
        ("teacher", "teacher of plain", (0.75,)),
        ("with", "plain", (0.6,)),
    ]
    text = write_comparison(rows, tmp_path / "out")
    assert "teacher  teacher of plain     -  mIoU 0.7500" in text


def test_one_recipe_with_two_settings_is_two_rows(tmp_path):
    other = {**PLAIN, "optimizer": {"class": "Adam", "lr": 0.3}}
    score = {"miou": 0.5, "iou": [0.5, 0.5]}
    rows = compare(
        [write_run(tmp_path / name, r, score) for name, r in (("a", PLAIN), ("b", other))]
    )
    assert [row.name for row in rows] == ["plain", "plain #2"]
    assert "optimizer.lr  0.1    0.3" in table_text(rows)


def test_what_differs_is_named_as_deep_as_it_is_alike():
    a = {"x": 1, "opt": {"class": "A", "lr": 1.0}, "terms": [{"class": "T", "weight": 1.0}]}
    assert differing([a, a]) == {}
    assert differing([a, {**a, "opt": {"class": "A", "lr": 2.0}}]) == {"opt.lr": [1.0, 2.0]}
    other = {"class": "B", "beta": 1}
    assert differing([a, {**a, "opt": other}, a]) == {"opt": [a["opt"], other, a["opt"]]}
    heavier = {**a, "terms": [{"class": "T", "weight": 3.0}]}
    assert differing([a, heavier]) == {"terms.0.weight": [1.0, 3.0]}
    more = {**a, "terms": [*a["terms"], {"class": "U", "weight": 0.5, "target": "t"}]}
    assert differing([a, more]) == {"terms": [a["terms"], more["terms"]]}
    assert short(more["terms"]) == "1 T, 0.5 U(t)"
    assert differing([{"x": None}, {"x": 0}, {}]) == {"x": [None, 0, None]}


def test_text_csv_json_and_plot_say_the_same(runs, tmp_path):
    rows, out = compare(runs), tmp_path / "out"
    text = write_comparison(rows, out)
    assert (out / "comparison.txt").read_text() == f"{text}\n"
    assert "without  plain      2  mIoU 0.6000 ± 0.1414  0.4000 ± 0.1414       1,000  3.00" in text
    assert "0.5 SoftKL(t)" in text
    lines = list(csv.DictReader((out / "comparison.csv").read_text("utf-8").splitlines()))
    body = read_json(out / "comparison.json")
    for line, row in zip(lines, body["rows"], strict=True):
        assert float(line["score"]) == row["score"] and line["recipe"] == row["recipe"]
    assert [line["terms"] for line in lines] == ["none", "none", "0.5 SoftKL(t)"]
    assert [line["optimizer.lr"] for line in lines] == ["0.2", "0.1", "0.1"]
    assert body["differs"]["optimizer.lr"] == [0.2, 0.1, 0.1]
    with Image.open(out / "comparison.png") as image:
        assert image.format == "PNG" and len(np.unique(np.array(image))) > 50


@pytest.mark.parametrize("twice", [True, False])
def test_a_run_named_twice_or_not_finished_is_refused(runs, tmp_path, twice):
    (tmp_path / "begun").mkdir()
    more = tmp_path / "x" / ".." / "a" if twice else tmp_path / "begun"
    with pytest.raises(UserError, match="named twice" if twice else "not a finished run"):
        compare([*runs, more])
