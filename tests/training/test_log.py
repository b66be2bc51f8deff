"""metrics.jsonl holds what was, up to the step that a run goes on from."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stillroom.errors import UserError
from stillroom.training.log import Log, draw_curves, read_metrics
from stillroom.training.loop import train


def write(run: Path, first: int, last: int) -> None:
    with Log(run, first - 1) as log:
        for step in range(first, last + 1):
            log.write("train", step, step // 4, {"loss": 1 / step, "term_ce": 2 / step})
            if step % 4 == 0:
                log.write("val", step, step // 4, {"miou": step / 10, "iou": [0.5, None]})


def test_lines_beyond_the_resumed_step_are_cut(tmp_path):
    write(tmp_path, 1, 10)
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    with Log(tmp_path, 8) as log:
        assert [line["step"] for line in log.lines] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    after = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert after == before[:10]
    write(tmp_path, 9, 10)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before


def test_a_new_run_starts_with_an_empty_record(tmp_path):
    write(tmp_path, 1, 4)
    with Log(tmp_path, 0) as log:
        assert log.lines == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_last_line_that_was_cut_off_is_left_out_and_written_anew(tmp_path, cut):
    write(tmp_path, 1, 6)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    kept = [line["step"] for line in read_metrics(tmp_path)]
    assert kept == ([1, 2, 3, 4, 4, 5, 6] if cut == 1 else [1, 2, 3, 4, 4, 5])
    write(tmp_path, 6, 6)  # resumed from step 5
    assert path.read_bytes() == whole


def test_what_is_not_finite_is_null_and_every_line_is_json(tmp_path):
    with Log(tmp_path, 0) as log:
        log.write("val", 3, 0, {"a": math.nan, "b": [math.inf, 1.0], "c": None})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert found == {"kind": "val", "step": 3, "epoch": 0, "a": None, "b": [None, 1.0], "c": None}


def test_tensorboard_has_the_scalars_even_when_the_run_ends_in_an_error(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyError), Log(tmp_path, 0) as log:
        log.write("train", 7, 0, {"loss": 0.25})
        raise KeyError
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (scalar,) = events.Scalars("train/loss")
    assert (scalar.step, scalar.value) == (7, 0.25)


def test_curves_are_drawn_from_any_lines(tmp_path):
    write(tmp_path, 1, 8)
    for number, lines in enumerate(([], read_metrics(tmp_path))):
        draw_curves(lines, tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as picture:
            assert (picture.format, picture.size) == ("PNG", (1210, 440))


def test_the_curves_are_those_of_loss_terms_and_scores(tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    write(tmp_path, 1, 8)
    draw_curves(read_metrics(tmp_path), tmp_path / "curves.png")
    drawn = [
        {line.get_label(): [*zip(*line.get_data(), strict=True)] for line in axes.lines}
        for axes in figures[0].axes
    ]
    steps = range(1, 9)
    assert drawn[0] == {"loss": [(n, 1 / n) for n in steps], "ce": [(n, 2 / n) for n in steps]}
    assert drawn[1] == {"mIoU": [(4, 0.4), (8, 0.8)]}


def test_a_tracker_gets_every_number_and_the_settings(tiny_recipe, undrawn):
    run = replace(tiny_recipe.run, tracker="tensorboard", log_every=1)
    folder = train(replace(tiny_recipe, epochs=1, run=run))
    found = EventAccumulator(str(folder / tiny_recipe.name)).Reload()
    for line in read_metrics(folder):
        for name in ("loss", "lr", "miou"):
            if name in line:
                events = found.Scalars(f"{line['kind']}/{name}")
                values = {event.step: event.value for event in events}
                assert values[line["step"]] == pytest.approx(line[name])
    (settings,) = (folder / tiny_recipe.name).rglob("hparams.yml")
    assert f"batch: {tiny_recipe.batch}" in settings.read_text()


def test_a_tracker_that_is_not_there_is_refused_before_any_work(tiny_recipe):
    for name, fix in (("wandb", "pip install wandb"), ("wanda", "one of aim, ")):
        run = replace(tiny_recipe.run, tracker=name)
        with pytest.raises(UserError, match=f"no tracker {name}") as error:
            train(replace(tiny_recipe, run=run))
        assert fix in str(error.value) and not (Path(run.out) / "tiny").exists()
