"""A line for people fits its columns, a terminal gets one bar, and quiet is quiet."""

import sys
from dataclasses import replace

import pytest

from stillroom.training.loop import train
from stillroom.training.progress import step_line

SOME = {
    "loss": 1.25,
    "term_ce": 0.5,
    "term_kl": None,
    "term_dice": 0.75,
    "rows_per_s": 12.3,
    "waiting": 0.01,
}


def test_a_line_for_people_names_the_terms_that_were_seen():
    said = step_line(6, 2, SOME, "0:04")
    assert said == "step 2/6: loss 1.2500 (ce 0.5, dice 0.75), 12.3 rows/s, 0:04 left"
    said = step_line(6, 2, SOME | {"waiting": 0.314}, "0:04")
    assert said.endswith(", 12.3 rows/s, 31% waiting, 0:04 left")


@pytest.mark.parametrize("number", [0, 1, 6, 40])
def test_a_line_has_at_most_100_columns_and_counts_the_terms_that_are_left_out(number):
    terms = {f"term_feature_mse_{i}": 0.123456 for i in range(number)}
    figures = {
        "loss": 12.3456,
        **terms,
        "rows_per_s": 1234.5,
        "waiting": 1.0,
        "skipped_steps": 3,
        "scale": 65536,
    }
    said = step_line(123456, 12345, figures, "12:34:56")
    assert len(said) <= 100 and "3 steps skipped" in said
    figures = {**figures, "skipped_steps": 0}
    assert len(step_line(123456, 12345, figures, "12:34:56")) <= 100
    figures = {**figures, "waiting": 0.0}
    said = step_line(123456, 12345, figures, "12:34:56")
    assert len(said) <= 100 and said.count("mse") == min(number, 1)
    assert number < 2 or f"+{number - 1} more" in said


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_gets_a_bar_other_places_lines_and_a_quiet_one_neither(
    tiny_recipe, monkeypatch, capsys, quiet, terminal
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    run = replace(tiny_recipe.run, quiet=quiet, log_every=1)
    folder = train(replace(tiny_recipe, epochs=1, run=run))
    said = capsys.readouterr()
    assert ("step 1/3: loss" in said.out) == (not quiet and not terminal)
    assert ("3/3" in said.err) == (terminal and not quiet)
    assert ("epoch 1: mIoU" in said.out) == (not quiet)
    assert said.out.splitlines()[-1].startswith("done: ")
    assert (folder / "metrics.jsonl").read_text().count("train") == 3
