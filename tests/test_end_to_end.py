"""Pictures in, the teacher said it once, a student trained from what was kept, a score out."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import stillroom.training.loop as loop
from stillroom.cache.folder import Cache, open_cache
from stillroom.cli import recipe_from
from stillroom.errors import DamageError, UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.jsonfile import read_json
from stillroom.pictures.make import make_shards
from stillroom.pictures.synthetic import CLASSES, write_shapes
from stillroom.training.loop import train
from stillroom.using.evaluation import evaluate, open_data
from stillroom.using.student import load_student

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--batch", "8", "--micro-batch", "4", "--run.log-every", "2", "--run.evaluate-every", "1"]
SMALL = ["--student.width", "4", "--student.depth", "2"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """32 + 8 pictures of 32 px in shards of 8."""
    folder = tmp_path_factory.mktemp("shapes")
    for split, count, seed in (("train", 32, 0), ("val", 8, 1000)):
        write_shapes(folder / split, count, 32, first_seed=seed)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    train, val = (
        f"folders:{folder / s / 'images'},{folder / s / 'masks'}" for s in ("train", "val")
    )
    make_shards(
        train,
        out=folder / "shards",
        val=val,
        size=(32, 32),
        format="png",
        shard_rows=8,
        classes=str(folder / "classes.txt"),
    )
    return folder / "shards"


def command(script: str, *words: object, process: int = 1) -> list[str]:
    python = [sys.executable]
    if process > 1:
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={process}"]
    return [*python, str(ROOT / script), *map(str, words)]


def call(script: str, *words: object, process: int = 1, status: int = 0) -> str:
    """Run a command of ours with one thread a process and return what it printed."""
    done = subprocess.run(
        command(script, *words, process=process),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def stage_1(*words: object) -> Cache:
    """Stage 1 in this process, shapes checked."""
    return cache_teacher(recipe_from(["tiny", *map(str, words)]), ProcessContext())


def stage_2(recipe: str, *words: object) -> Path:
    """Stage 2 in this process, shapes checked."""
    return train(recipe_from([recipe, *map(str, words)]))


@pytest.fixture(scope="module")
def teacher(shapes, tmp_path_factory) -> Path:
    """A finished run that serves as a teacher."""
    out = tmp_path_factory.mktemp("teacher")
    words = ["--data.shards", shapes, "--run.out", out, "--epochs", 2, *QUICK, *SMALL]
    return stage_2("tiny-teacher", *words)


@pytest.fixture(scope="module")
def flags(shapes, teacher, tmp_path_factory) -> list[object]:
    """Flags of the recipe `tiny` with a complete cache."""
    cache = tmp_path_factory.mktemp("cache")
    words = ["--data.shards", shapes, "--run.cache", cache, "--teachers.0.path", teacher]
    words += [*QUICK, *SMALL]
    assert stage_1(*words, "--gate-floor", 0.0).is_complete
    return words


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student.safetensors")


def lines(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("rows_per_s", "waiting")} for line in found]


def same_rows(one: Cache, two: Cache) -> bool:
    """Whether two caches hold equal rows."""
    for shard in one.shard_ids():
        with one.reader(shard) as a, two.reader(shard) as b:
            assert tuple(a.rows) == tuple(b.rows)
            for i in range(len(a)):
                first, second = a.read(i), b.read(i)
                if not all(np.array_equal(first[part], second[part]) for part in first):
                    return False
    return one.fingerprint == two.fingerprint and two.is_complete


def only(folder: object) -> Path:
    (found,) = Path(str(folder)).iterdir()
    return found


def test_a_student_is_trained_from_the_cache_and_evaluated_alone(flags, tmp_path):
    said = call("train_student.py", "tiny", *flags, "--run.out", tmp_path, "--epochs", 2)
    run = tmp_path / "tiny"
    assert read_json(run / "receipt.json")["teacher_modules"] == []
    names = ["curves.png", "student.json", "recipe.json", "pictures/step-000008.png"]
    assert all((run / name).is_file() for name in names)
    best = max(line["miou"] for line in lines(run) if line["kind"] == "val")
    assert f"best {best:.4f}" in said
    trained = load_student(run)
    assert evaluate(trained, open_data(trained, None))["miou"] == pytest.approx(best, abs=1e-9)
    assert np.sum(read_json(run / "evaluation.json")["confusion"]) > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_student_learns_what_another_does(flags, tmp_path):
    words = ("tiny", *flags, "--run.out", tmp_path, "--epochs", 1)
    call("train_student.py", *words, "--run.name", "plain")
    call("train_student.py", *words, "--run.name", "compiled", "--compile", "--channels-last")
    one, two = (load_file(tmp_path / n / "student.safetensors") for n in ("plain", "compiled"))
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one | two)


def test_teacher_miou_and_agreement_come_from_the_cache(flags, teacher, tmp_path):
    last = lines(stage_2("tiny", *flags, "--run.out", tmp_path, "--epochs", 1))[-1]
    stored = read_json(teacher / "student.json")["score"]["miou"]
    assert last["teacher_miou"] == pytest.approx(stored, abs=2e-3)
    assert 0 <= last["agreement"] <= 1


def test_interrupted_after_an_epoch_and_resumed_equals_the_straight_run(flags, tmp_path):
    words = ["tiny", *flags, "--epochs", 3, "--run.keep", 3]
    a = stage_2(*words, "--run.out", tmp_path / "a")
    b = stage_2(*words, "--run.out", tmp_path / "b")
    shutil.rmtree(b / "checkpoints" / "step-000012")
    stage_2(*words, "--run.out", tmp_path / "b", "--run.resume")
    assert lines(a) == lines(b)
    assert all(torch.equal(t, weights(b)[name]) for name, t in weights(a).items())


def test_a_damaged_newest_checkpoint_is_passed_over(flags, tmp_path, capsys):
    words = ["tiny", *flags, "--epochs", 2, "--run.out", tmp_path]
    run = stage_2(*words)
    before = weights(run)
    newest = run / "checkpoints" / "step-000008" / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)
    stage_2(*words, "--run.resume")
    said = capsys.readouterr().out
    assert "step-000008 is damaged and passed over" in said
    assert "resumed from" in said
    assert "step-000004" in said
    assert all(torch.equal(t, weights(run)[name]) for name, t in before.items())


def test_sigterm_saves_in_mid_epoch_and_the_rest_is_bit_identical(flags, tmp_path):
    words = ["tiny", *flags, "--epochs", 10, "--run.evaluate-every", 10]
    straight = stage_2(*words, "--run.out", tmp_path / "a")
    broken = [*words, "--run.out", tmp_path / "b"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command("train_student.py", *broken),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("step 6/"):
                child.send_signal(signal.SIGTERM)
                break
        said = child.stdout.read()
    assert child.returncode == 75, said
    assert "saved at step" in said
    assert (tmp_path / "b" / "tiny" / "requeue").is_file()
    resumed = stage_2(*broken, "--run.resume")
    a, b = weights(straight), weights(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_ranks_make_the_cache_that_one_makes(flags, tmp_path):
    words = [*flags, "--run.cache", tmp_path, "--gate-floor", 0.0]
    call("tools/cache_teacher.py", "tiny", *words, process=2)
    assert same_rows(open_cache(only(flags[3])), open_cache(only(tmp_path)))


MOMENTS = ("folder-made", "body-started", "frame-half-written:3", "row-appended:5")
MOMENTS += ("body-finished", "files-synced", "shard-json-written", "folders-synced", "read-back")


@pytest.mark.slow
def test_stage_1_killed_at_ten_moments_and_finished_by_two_loses_nothing(
    flags, tmp_path, monkeypatch
):
    words = [*flags, "--run.cache", tmp_path, "--gate", "off"]
    for moment in MOMENTS:
        monkeypatch.setenv("STILLROOM_FAULT", moment)
        before = len(list(tmp_path.glob("*/tmp/*")))
        call("tools/cache_teacher.py", "tiny", *words, status=-signal.SIGKILL)
        more = len(list(tmp_path.glob("*/tmp/*"))) - before
        assert more in (1, 2)  # a shard under way, and perhaps one that is being published
    monkeypatch.setenv("STILLROOM_FAULT", "renamed:2")
    call("tools/cache_teacher.py", "tiny", *words, status=-signal.SIGKILL)
    assert len(open_cache(only(tmp_path)).missing()) == 3
    monkeypatch.delenv("STILLROOM_FAULT")
    call("tools/cache_teacher.py", "tiny", *words, process=2)
    assert open_cache(only(tmp_path)).missing() == ()
    assert same_rows(open_cache(only(flags[3])), open_cache(only(tmp_path)))


def test_a_cache_of_other_pictures_is_refused_with_the_command_that_makes_it(flags, tmp_path):
    write_shapes(tmp_path / "s", 12, 32, first_seed=5000)
    source = f"folders:{tmp_path / 's' / 'images'},{tmp_path / 's' / 'masks'}"
    make_shards(source, out=tmp_path / "shards", size=(32, 32), format="png", classes="4")
    words = [*flags[2:], "--data.shards", tmp_path / "shards", "--run.out", tmp_path / "runs"]
    with pytest.raises(UserError, match="stillroom cache tiny"):
        stage_2("tiny", *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--freeze", "encoder"], "nothing before it trains"),
        (["--freeze", "nothing_of_that_name"], "no part named"),
        (["--terms.2.target", "nobody"], "'nobody'"),
        (["--terms.2.target", "inner"], "needs logits"),
        (["--batch", "6", "--micro-batch", "4"], "micro-batches"),
        (["--student.classes", "3"], "ground, disc, square, triangle"),
        (["--augment.mirror"], "mirrored"),
        (["--precision", "fp16", "--run.device", "cpu"], "fp16"),
        (["--terms.4.tap", "encoder.0", "--terms.5.tap", "encoder.0"], "grid"),
        (["--codec.shapes", "mp3"], "mp3"),
        (["--data.shards", "nowhere"], "nowhere"),
        (["--run.cache", "nowhere"], "nowhere"),
        (["--run.resume"], "no run"),
        (["--batch", "40"], "--batch 40, 32 training rows"),
        (["--batch", "100000"], "--batch 100000, 32 training rows"),
        (["--run.name", "../evil"], "the name of one folder"),
        (["--run.name", ".."], "the name of one folder"),
        (["--teachers.0.path", "nowhere"], r"nowhere(.|\n)*--run\.recorded-teachers"),
        (["--optimizer.lr", "nan"], "no such --optimizer.lr"),
        (["--optimizer.lr", "-1"], "no such --optimizer.lr"),
        (["--optimizer.lr", "inf"], "no such --optimizer.lr"),
        (["--optimizer.weight-decay", "nan"], "no such --optimizer.weight-decay"),
        (["--schedule.warmup", "1.5"], "no such --schedule.warmup"),
        (["--schedule.final", "-0.1"], "no such --schedule.final"),
        (["--optimizer.clip", "nan"], "no such --optimizer.clip"),
        (["--optimizer.nominal-batch", "0"], "no such --optimizer.nominal-batch"),
        (["--augment.photometric", "1"], "no such --augment.photometric"),
        (["--run.out", "/dev/null/runs"], r"/dev/null cannot be a folder(.|\n)*--run\.out"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(flags, tmp_path, monkeypatch, words, expected):
    monkeypatch.setattr(loop, "_run_steps", lambda *_: pytest.fail("it began"))
    with pytest.raises(UserError, match=expected):
        stage_2("tiny", *flags, "--run.out", tmp_path / "runs", *words)
    assert not list(tmp_path.iterdir())


def test_a_teacher_of_other_channels_is_refused_before_anything_is_cached(flags, tmp_path):
    words = [*flags, "--run.cache", tmp_path / "cache", "--student.classes", 1]
    words += ["--terms.0.weight", 0, "--terms.1.weight", 0]
    with pytest.raises(UserError, match=r"4 of the target 'shapes'(.|\n)*--student\.classes"):
        stage_1(*words)
    assert not (tmp_path / "cache").exists()


def test_a_teacher_that_the_gate_refuses_leaves_no_cache_behind(flags, tmp_path):
    words = [*flags, "--run.cache", tmp_path / "cache", "--gate-floor", 1.0]
    with pytest.raises(UserError, match="failed the quality gate"):
        stage_1(*words)
    assert not (tmp_path / "cache").exists()


def test_pictures_without_labels_are_distilled_and_terms_that_need_labels_refused(
    flags, teacher, tmp_path, capsys
):
    write_shapes(tmp_path / "s", 20, 32)
    source, shards = f"unlabelled:{tmp_path / 's' / 'images'}", tmp_path / "shards"
    make_shards(source, out=shards, val_share=0.3, size=(32, 32), format="png")
    words = [*flags, "--data.shards", shards, "--run.out", tmp_path / "runs"]
    words += ["--run.cache", tmp_path / "cache"]
    with pytest.raises(UserError, match=r"ce, dice need labels(.|\n)*weight 0"):
        stage_1(*words)
    words += ["--terms.0.weight", 0, "--terms.1.weight", 0, "--epochs", 1]
    assert stage_1(*words).is_complete
    run = stage_2("tiny", *words)
    assert "agreement" in capsys.readouterr().out
    score = read_json(run / "student.json")["score"]
    assert score["miou"] is None and 0 <= score["agreement"] <= 1


def test_a_mistake_is_one_paragraph_and_exit_status_2(flags, tmp_path):
    said = call("train_student.py", "tiny", *flags, "--batch", 6, "--run.out", tmp_path, status=2)
    assert "--batch 6 --micro-batch 4" in said
    assert "Traceback" not in said
    assert "no recipe" in call("train_student.py", "tinny", status=2)


def test_an_existing_run_is_not_touched_without_asking(flags, tmp_path):
    words = ["tiny", *flags, "--run.out", tmp_path, "--epochs", 1]
    before = weights(stage_2(*words))
    with pytest.raises(UserError, match="exists"):
        stage_2(*words)
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        stage_2(*words, "--run.resume", "--optimizer.lr", 0.5)
    assert all(torch.equal(t, weights(tmp_path / "tiny")[name]) for name, t in before.items())


def test_a_flipped_bit_in_the_cache_stops_the_trainer_and_is_named(flags, tmp_path):
    copy = tmp_path / "cache"
    shutil.copytree(flags[3], copy)
    body = next(copy.glob("*/train-000001.zarr/shapes.value/c/0/0/0/0"))
    data = bytearray(body.read_bytes())
    data[100] ^= 4
    body.write_bytes(data)
    words = [*flags, "--run.cache", copy, "--run.out", tmp_path / "runs", "--epochs", 1]
    with pytest.raises(DamageError, match=r"train-000001.*\n?.*shapes\.value"):
        stage_2("tiny", *words)
