"""A run comes to its end, or ends early without leaving anything half done or behind."""

import gc
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stillroom.training.evaluation as evaluation
import stillroom.training.loop as loop
from stillroom.errors import DamageError, FailureError, Stopped
from stillroom.jsonfile import read_json
from stillroom.losses import CrossEntropy
from stillroom.pictures.dataset import open_pictures
from stillroom.recipe import AdamW, Augment, Recipe
from stillroom.training.context import TrainContext
from stillroom.training.log import read_metrics
from stillroom.using.student import load_student

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


def plain(recipe: Recipe, **changes: object) -> Recipe:
    """The same without a teacher."""
    terms = {"terms": (CrossEntropy(),), "teachers": (), "codec": {}}
    return replace(recipe, **{**terms, **changes})


def own_pictures(make_tiny, folder: Path, recipe: Recipe, **more: object) -> Recipe:
    make_tiny.make_pictures(folder, **more)
    return plain(recipe, data=replace(recipe.data, shards=str(folder / "shards")))


def names_of_threads() -> set[str]:
    gc.collect()
    return {t.name.split("_")[0] for t in threading.enumerate() if t.name != "MainThread"}


def test_a_run_without_validation_keeps_its_last_student(make_tiny, tiny_recipe, tmp_path, capsys):
    recipe = own_pictures(make_tiny, tmp_path, tiny_recipe, train=8, val=0)
    run = loop.train(recipe)
    assert read_json(run / "student.json")["step"] == 2
    assert load_student(run).about["score"]["miou"] is None
    assert "done" in capsys.readouterr().out


def test_a_class_that_is_nowhere_in_the_validation_split_ends_no_run(
    make_tiny, tiny_recipe, tmp_path
):
    names = (*"abcd", "nowhere")
    recipe = own_pictures(make_tiny, tmp_path, tiny_recipe, train=8, val=2, classes=names)
    recipe = replace(recipe, student=replace(recipe.student, classes=5))
    recipe = replace(recipe, optimizer=AdamW(lr=0.1), epochs=4)
    score = read_json(loop.train(recipe) / "student.json")["score"]
    assert score["iou"][4] is None
    assert 0 < score["miou"] < 1


def test_what_is_not_finite_is_never_saved(tiny_recipe):
    recipe = plain(tiny_recipe, optimizer=AdamW(lr=1e30, clip=0.0, weight_decay=0.0), epochs=4)
    recipe = replace(recipe, run=replace(recipe.run, log_every=10**6, evaluate_every=2))
    with pytest.raises(FailureError, match="not finite"):
        loop.train(recipe)
    run = Path(recipe.run.out) / "tiny"
    assert list((run / "checkpoints").iterdir()) == []
    assert not (run / "best").exists()


def test_an_error_gives_threads_and_handlers_back(tiny_recipe, monkeypatch):
    before, handler = names_of_threads(), signal.getsignal(signal.SIGTERM)

    def broken(*_):
        assert signal.getsignal(signal.SIGTERM) is not handler
        raise FailureError("broken")

    monkeypatch.setattr(loop, "_update", broken)
    with pytest.raises(FailureError) as kept:  # the traceback stays, as in a notebook
        loop.train(plain(tiny_recipe))
    assert names_of_threads() <= before
    assert signal.getsignal(signal.SIGTERM) is handler
    assert kept.value.what == "broken"


def test_an_error_in_validation_gives_threads_back(tiny_recipe, monkeypatch):
    before = names_of_threads()

    def broken(*_, **__):
        raise FailureError("broken")

    monkeypatch.setattr(evaluation, "validate", lambda *a, **k: (next(iter(a[2])), broken())[1])
    with pytest.raises(FailureError) as kept:
        loop.train(plain(tiny_recipe))
    assert names_of_threads() <= before
    assert kept.value.what == "broken"


def test_told_to_stop_it_saves_at_the_next_line_and_a_resume_is_exact(tiny_recipe, monkeypatch):
    recipe = plain(tiny_recipe, epochs=3, augment=Augment(photometric=0.2))
    recipe = replace(recipe, run=replace(recipe.run, log_every=2))
    straight = loop.train(replace(recipe, run=replace(recipe.run, name="straight")))
    update, calls = loop._update, []

    def signalled(context, step, frozen):
        calls.append(step)
        if step == 4:
            os.kill(os.getpid(), signal.SIGUSR1)  # SIGTERM: test_end_to_end
        return update(context, step, frozen)

    monkeypatch.setattr(loop, "_update", signalled)
    with pytest.raises(Stopped, match="saved at step 6 of 9") as stopped:
        loop.train(recipe)
    assert stopped.value.exit_code == 75
    assert calls == [0, 1, 2, 3, 4, 5]
    run = Path(recipe.run.out) / "tiny"
    assert (run / "requeue").is_file()
    loop.train(replace(recipe, run=replace(recipe.run, resume=True)))
    assert not (run / "requeue").exists()
    assert calls[6:] == [6, 7, 8]
    one, two = (load_file(f / "student.safetensors") for f in (straight, run))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for a, b in zip(read_metrics(straight), read_metrics(run), strict=True):
        assert {**a, "rows_per_s": 0} == {**b, "rows_per_s": 0}


def test_a_binary_task_without_foreground_is_summed_up(tiny_world):
    pictures = open_pictures(tiny_world / "shards")
    pictures.classes = ("ground", "person")
    context = TrainContext.__new__(TrainContext)
    object.__setattr__(context, "pictures", pictures)
    assert evaluation._summary(context, {"miou": 1.0, "iou": [1.0, None]}) == "mIoU 1.0000"
    found = {"miou": 0.75, "iou": [1.0, 0.5], "teacher_iou": [1.0, 0.25]}
    assert evaluation._summary(context, found).endswith(
        "person IoU 0.5000, teacher person IoU 0.2500"
    )


def test_a_substituted_row_is_counted_in_the_receipt(
    tiny_world, tiny_recipe, tmp_path, capsys, flip_picture
):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_world / "shards", shards)
    pictures = open_pictures(shards)
    flip_picture(pictures.open(pictures.shard_ids("train")[1]), 3)
    recipe = plain(tiny_recipe, data=replace(tiny_recipe.data, shards=str(shards)), epochs=1)
    with pytest.raises(DamageError, match="000011"):
        loop.train(recipe)
    recipe = replace(
        recipe, on_damage="substitute", run=replace(recipe.run, overwrite=True, workers=1)
    )
    run = loop.train(recipe)
    assert read_json(run / "receipt.json")["substituted_rows"] == 1
    assert "1 damaged rows were left out" in capsys.readouterr().out
