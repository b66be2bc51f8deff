"""A run comes to its end, or ends early without leaving anything half done or behind."""

import errno
import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

import stillroom.training.checkpoint as checkpoint
import stillroom.training.loop as loop
import stillroom.training.step as step_sums
import stillroom.training.stop_request as stop_request
import stillroom.training.validate as validate
from stillroom.errors import DamageError, FailureError, Stopped, UserError
from stillroom.jsonfile import read_json, write_json
from stillroom.losses import CrossEntropy
from stillroom.pictures.dataset import open_pictures
from stillroom.recipe import Augment, Recipe
from stillroom.recipe_optimizer import AdamW
from stillroom.training.context import TrainContext
from stillroom.training.log import read_metrics
from stillroom.training.run_folder import claim_run
from stillroom.using.student import load_student

pytestmark = pytest.mark.usefixtures("undrawn")


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
    trained = load_student(run)
    assert trained.about["score"]["miou"] is None
    assert trained.about["geometry"]["fit"] == "letterbox"
    assert "the last student, no score (no validation split)" in capsys.readouterr().out


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


def test_a_student_that_its_last_step_spoilt_is_not_saved(tiny_recipe, monkeypatch):
    drop = step_sums.drop_frozen_gradients

    def spoil(distiller, *words):
        distiller.student.segmentation_head.bias.data[1] = torch.inf
        drop(distiller, *words)

    monkeypatch.setattr(step_sums, "drop_frozen_gradients", spoil)
    recipe = plain(tiny_recipe, batch=24, epochs=1)  # one step, whose loss is finite
    with pytest.raises(FailureError, match="the student is not finite after step 1") as failed:
        loop.train(recipe)
    assert failed.value.found == "student.segmentation_head.bias"
    assert not list(Path(recipe.run.out).rglob("*.safetensors"))


def test_an_error_gives_threads_and_handlers_back(tiny_recipe, monkeypatch):
    before, handler = names_of_threads(), signal.getsignal(signal.SIGTERM)

    def broken(*_):
        assert signal.getsignal(signal.SIGTERM) is not handler
        raise FailureError("broken")

    monkeypatch.setattr(loop, "learning_rate", broken)
    with pytest.raises(FailureError) as kept:  # the traceback stays, as in a notebook
        loop.train(plain(tiny_recipe))
    assert names_of_threads() <= before
    assert signal.getsignal(signal.SIGTERM) is handler
    assert kept.value.what == "broken"


def test_an_error_in_validation_gives_threads_back(tiny_recipe, monkeypatch):
    before = names_of_threads()

    def broken(*_, **__):
        raise FailureError("broken")

    monkeypatch.setattr(validate, "validate", lambda *a, **k: (next(iter(a[2])), broken())[1])
    with pytest.raises(FailureError) as kept:
        loop.train(plain(tiny_recipe))
    assert names_of_threads() <= before
    assert kept.value.what == "broken"


@pytest.mark.parametrize("channels_last", [False, True])
def test_told_to_stop_it_saves_at_the_next_line_and_a_resume_is_exact(
    tiny_recipe, monkeypatch, channels_last
):
    recipe = plain(tiny_recipe, epochs=3, augment=Augment(photometric=0.2))
    recipe = replace(recipe, channels_last=channels_last)
    recipe = replace(recipe, run=replace(recipe.run, log_every=2))
    straight = loop.train(replace(recipe, run=replace(recipe.run, name="straight")))
    rate, calls = loop.learning_rate, []

    def signalled(recipe, moment):
        calls.append(moment.step)
        if moment.step == 4:
            os.kill(os.getpid(), signal.SIGUSR1)  # SIGTERM: test_end_to_end
        return rate(recipe, moment)

    monkeypatch.setattr(loop, "learning_rate", signalled)
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
        assert {**a, "rows_per_s": 0, "waiting": 0} == {**b, "rows_per_s": 0, "waiting": 0}


def test_between_two_lines_it_asks_by_time_and_a_resume_is_exact(tiny_recipe, monkeypatch):
    recipe = plain(tiny_recipe, epochs=3)
    recipe = replace(recipe, run=replace(recipe.run, log_every=100, evaluate_every=3))
    straight = loop.train(replace(recipe, run=replace(recipe.run, name="straight")))
    rate = loop.learning_rate

    def signalled(recipe, moment):
        if moment.step == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return rate(recipe, moment)

    monkeypatch.setattr(stop_request, "_EVERY_S", 0.0)
    monkeypatch.setattr(loop, "learning_rate", signalled)
    with pytest.raises(Stopped, match="saved at step 5 of 9"):
        loop.train(recipe)
    run = loop.train(replace(recipe, run=replace(recipe.run, resume=True)))
    assert [x["step"] for x in read_metrics(run) if x["kind"] == "train"] == [5, 9]
    one, two = (load_file(f / "student.safetensors") for f in (straight, run))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_that_had_a_scaler_of_losses_goes_on_where_there_is_none(tiny_recipe, capsys):
    recipe = plain(tiny_recipe, epochs=1)
    path = loop.train(recipe) / "checkpoints" / "step-000003" / "state.json"
    write_json(path, read_json(path) | {"scaler": {"scale": 65536.0}})  # as on a GPU in fp16
    loop.train(replace(recipe, run=replace(recipe.run, resume=True)))
    assert f"resumed from {path.parent}" in capsys.readouterr().out


def test_a_resume_removes_what_a_killed_process_left(tiny_recipe):
    recipe = plain(tiny_recipe, epochs=1)
    run = loop.train(recipe)
    left = (run / ".best.1.tmp", run / "checkpoints" / ".step-000003.1.tmp")
    for folder in left:
        folder.mkdir()
    loop.train(replace(recipe, run=replace(recipe.run, resume=True)))
    assert not any(folder.exists() for folder in left)


def test_a_full_disk_ends_a_run_in_one_paragraph_and_a_resume_goes_on(tiny_recipe, monkeypatch):
    recipe, write = plain(tiny_recipe), checkpoint.write_bytes

    def full(path: Path, data: bytes) -> bool:
        if "step-000006" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    with pytest.raises(FailureError, match=r"disk of .* is full(.|\n)*--run\.out(.|\n)*resume"):
        loop.train(recipe)
    monkeypatch.undo()
    loop.train(replace(recipe, run=replace(recipe.run, resume=True)))


def test_where_files_cannot_be_locked_it_is_said_and_the_run_goes_on(
    tiny_recipe, monkeypatch, capsys
):
    context = loop.prepare(plain(tiny_recipe))
    for number, error in ((errno.ENOLCK, nullcontext()), (errno.EIO, pytest.raises(OSError))):
        refused = OSError(number, os.strerror(number))
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=refused))
        with error, claim_run(context):
            assert (context.folder / "recipe.json").is_file()
        shutil.rmtree(context.folder)
    assert capsys.readouterr().out.count("cannot be locked: start no other run") == 1


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_run_that_another_process_trains_is_not_touched(tiny_recipe, flag):
    recipe = plain(tiny_recipe)
    run = loop.train(recipe)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    lock = f"import fcntl; f = open({str(run / 'lock')!r}); fcntl.flock(f, fcntl.LOCK_EX)"
    command = [sys.executable, "-c", f"{lock}; print(flush=True); input()"]
    pipe = subprocess.PIPE
    again = replace(recipe, run=replace(recipe.run, **{flag: True}))
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match=r"another process is training(.|\n)*--run\.name"):
            loop.train(again)
        other.kill()  # the lock dies with its process
    before.pop(run / "lock")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    loop.train(again)


def test_of_two_runs_that_found_the_name_free_the_second_to_come_is_refused(
    tiny_recipe, monkeypatch
):
    recipe = plain(tiny_recipe, epochs=1)
    prepare = loop.prepare

    def prepare_late(recipe: Recipe) -> TrainContext:
        context = prepare(recipe)
        monkeypatch.setattr(loop, "prepare", prepare)
        loop.train(recipe)  # another process, meanwhile
        return context

    monkeypatch.setattr(loop, "prepare", prepare_late)
    with pytest.raises(UserError, match="exists"):
        loop.train(recipe)


def test_a_substituted_row_is_counted_in_the_receipt(
    tiny_world, tiny_recipe, tmp_path, capsys, flip_picture
):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_world / "shards", shards)
    pictures = open_pictures(shards)
    shard = pictures.open(pictures.shard_ids("train")[1])
    flip_picture(shard, 3)
    recipe = plain(tiny_recipe, data=replace(tiny_recipe.data, shards=str(shards)), epochs=1)
    with pytest.raises(DamageError, match=shard.keys[3]):
        loop.train(recipe)
    recipe = replace(
        recipe, on_damage="substitute", run=replace(recipe.run, overwrite=True, workers=1)
    )
    run = loop.train(recipe)
    assert read_json(run / "receipt.json")["substituted_rows"] == 1
    assert "1 damaged rows were left out" in capsys.readouterr().out


def test_a_rank_resumes_where_the_first_says_and_does_not_look_for_itself(tiny_recipe, monkeypatch):
    recipe, steps = plain(tiny_recipe), []
    loop.train(recipe)  # leaves step 3 and step 6
    chosen, reduce, begin = iter([3, 12]), TrainContext.reduce, loop.RunningBuffers.begin

    def reduce_as_second(context: TrainContext, values: torch.Tensor) -> torch.Tensor:
        is_choice = values.dtype == torch.int64 and values.ndim == 0 and not steps
        return values + next(chosen) if is_choice else reduce(context, values)

    monkeypatch.setattr(TrainContext, "reduce", reduce_as_second)
    monkeypatch.setattr(TrainContext, "is_first", property(lambda _: False))
    monkeypatch.setattr(loop, "newest_checkpoint", lambda *_: pytest.fail("a listing may be old"))
    monkeypatch.setattr(
        loop.RunningBuffers, "begin", lambda buffers: (steps.append(1), begin(buffers))
    )
    again = replace(recipe, run=replace(recipe.run, resume=True))
    loop.train(again)
    assert len(steps) == 3  # from step 3 to step 6
    steps.clear()
    with pytest.raises(DamageError, match=r"step-000012 cannot be read, though another process"):
        loop.train(again)


def test_the_receipt_says_how_fast_it_was_how_long_it_waited_and_how_much_was_read(tiny_recipe):
    found = read_json(loop.train(replace(tiny_recipe, epochs=1)) / "receipt.json")
    assert 0 <= found["waiting"] < 1 and found["skipped_steps"] == 0
    lines = [line for line in read_metrics(Path(tiny_recipe.run.out) / "tiny") if "waiting" in line]
    rates = [line["rows_per_s"] for line in lines]
    assert min(rates) <= found["rows_per_s"] <= max(rates)
    rows = loop.prepare(replace(tiny_recipe, run=replace(tiny_recipe.run, name="other"))).dataset
    for place in range(len(rows)):
        rows.read(place)
    assert found["read_mb"] == pytest.approx(rows.num_bytes / 1e6, abs=0.06) and rows.num_bytes
