"""Two processes are one: the same gradient and running buffers, one log, one checkpoint, one
complaint.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillroom.cli import recipe_from
from stillroom.jsonfile import read_json
from stillroom.pictures.dataset import open_pictures
from stillroom.recipe import Recipe
from stillroom.training.log import read_metrics
from stillroom.training.loop import train
from stillroom.training.setup import prepare

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("driver", ROOT / "tests" / "two_ranks_driver.py")
assert _spec is not None and _spec.loader is not None
driver = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(driver)
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "default"}


def call(
    script: str, *words: object, process: int, config: str = "", patience_s: int = 110
) -> subprocess.CompletedProcess[str]:
    """Run a script in so many processes: by accelerate with one of our configurations, where that
    is named, else by torchrun.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={process}"]
    if config:
        file = str(ROOT / "accelerate_configs" / config)
        launcher = ["-m", "accelerate.commands.launch", "--config_file", file]
        launcher += ["--num_processes", str(process)] if process > 1 else []
        launcher += ONE_MACHINE if config.startswith("multinode") else []
    return subprocess.run(
        [sys.executable, *(launcher if config or process > 1 else []), script, *map(str, words)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=patience_s,
        check=False,
    )


ONE_MACHINE = ["--num_machines", "1", "--machine_rank", "0", "--main_process_ip", "127.0.0.1"]


def start(world: int, script: str, *words: object) -> None:
    """Run a script in so many processes as torchrun would; that itself takes three seconds more."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    place["WORLD_SIZE"] = str(world)
    children = [
        subprocess.Popen(
            [sys.executable, str(ROOT / script), *map(str, words)],
            env={**ENVIRONMENT, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    warned = [child.communicate(timeout=100)[1] for child in children]
    assert [child.returncode for child in children] == [0] * world, warned
    assert warned == [""] * world


def first_step(
    tiny_world: Path, out: Path, process: int, micro_batch: int = 4
) -> dict[str, torch.Tensor]:
    """What the first step of so many processes leaves."""
    if process == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        driver.main(tiny_world, out, micro_batch)
        torch.set_num_threads(threads)
    else:
        start(process, "tests/two_ranks_driver.py", tiny_world, out, micro_batch)
    return load_file(out / "first_step.safetensors")


@pytest.fixture(scope="module")
def first_steps(tiny_world, tmp_path_factory) -> dict[int, dict[str, torch.Tensor]]:
    """The first step of this process alone and of two."""
    found = {}
    for process in (1, 2):
        out = tmp_path_factory.mktemp(f"ranks{process}")
        found[process] = first_step(tiny_world, out, process)
        found[process]["refused"] = json.loads((out / "refused.json").read_text())
    return found


def require_equal_buffers(one: dict[str, torch.Tensor], more: dict[str, torch.Tensor]) -> None:
    """To the last bit; every one of them has moved."""
    names = {name for name in one if name.startswith("buffer.")}
    assert names == {name for name in more if name.startswith("buffer.")}
    assert any(name.endswith("running_var") for name in names)
    for name in names:
        assert torch.equal(one[name], more[name]), name
        assert one[name].abs().sum() > 0


def test_the_running_buffers_after_a_step_are_those_of_one_process(first_steps):
    require_equal_buffers(first_steps[1], first_steps[2])


@pytest.mark.slow
def test_four_processes_leave_the_buffers_and_the_gradient_of_one(tiny_world, tmp_path):
    for world in "14":
        (tmp_path / world).mkdir()
    one, four = (first_step(tiny_world, tmp_path / str(n), n, micro_batch=2) for n in (1, 4))
    require_equal_buffers(one, four)
    for name in (name for name in one if name.startswith("gradient.")):
        assert (one[name] - four[name]).norm() <= 1e-5 * one[name].norm().clamp_min(1e-6), name


def test_the_first_gradient_is_that_of_one_process(first_steps):
    one, two = (
        {n: g for n, g in first_steps[process].items() if n.startswith("gradient.")}
        for process in (1, 2)
    )
    assert one.keys() == two.keys()
    assert sum("projections" in name for name in one) == 6  # the feature terms have their share
    flat_1, flat_2 = (torch.cat([g[n].flatten() for n in sorted(one)]).double() for g in (one, two))
    assert (flat_1 - flat_2).norm() <= 1e-6 * flat_1.norm()
    assert (flat_1 - flat_2).abs().max() <= 1e-6 * flat_1.abs().max()
    assert flat_1.norm() > 0


def test_counts_are_global_and_the_micro_batches_very_unequal(first_steps, tiny_recipe):
    one, two = first_steps[1], first_steps[2]
    assert torch.equal(one["counts"], two["counts"])
    assert torch.equal(one["first"], two["first"])
    assert torch.allclose(one["totals"], two["totals"], rtol=1e-6)
    labels = [i for i, term in enumerate(tiny_recipe.terms) if term.label == "ce"]
    said = [i for i, term in enumerate(tiny_recipe.terms) if term.label == "kl"]
    share = one["first"] / one["counts"]
    assert (share[labels] < 0.05).all()  # nearly all void
    assert (share[said] == 0.5).all()
    assert one["counts"][said].tolist() == [8 * 24 * 48]  # no padding


def test_a_world_that_does_not_divide_the_micro_batches_is_refused_with_the_list(first_steps):
    assert first_steps[1]["refused"] == ""
    said = first_steps[2]["refused"]
    assert "2 processes, --batch 8 --micro-batch 8" in said
    assert "wanted: 1 processes" in said


def flags(recipe: Recipe, out: Path) -> list[object]:
    """The command line of such a recipe."""
    return [
        *("tiny", "--data.shards", recipe.data.shards, "--data.label-share", 1.0),
        *("--run.cache", recipe.run.cache, "--run.out", out, "--run.device", "cpu"),
        *("--teachers.0.path", recipe.teachers[0].path, "--run.log-every", 2),
        *("--student.width", 4, "--student.depth", 2),
        *(
            "--batch",
            8,
            "--micro-batch",
            4,
            "--epochs",
            2,
            "--run.keep",
            1,
            "--run.evaluate-every",
            1,
        ),
    ]


def test_two_ranks_train_the_student_of_one_and_say_no_more(tiny_recipe, tmp_path):
    words = flags(tiny_recipe, tmp_path)
    words += ["--precision", "fp32"]  # the file asks for fp16, which a CPU has not
    done = call("train_student.py", *words, process=2, config="multinode_fp16.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    starts = [line.split()[0] for line in done.stdout.splitlines()]
    assert starts == ["cache:", "run", "step", "step", "epoch", "step", "step", "epoch", "done:"]
    run = tmp_path / "tiny"
    lines = [(line["kind"], line["step"]) for line in read_metrics(run)]
    assert lines == [("train", s) if k else ("val", s) for s, k in SEEN]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000006"]
    assert read_json(run / "receipt.json")["processes"] == 2
    assert all(0 < line["miou"] <= 1 for line in read_metrics(run) if line["kind"] == "val")
    assert not list(run.rglob(".*"))
    recipe = recipe_from([*map(str, words), "--run.name", "alone"])
    start = parameters(prepare(recipe).distiller.state_dict())
    alone = train(recipe)
    last = "checkpoints/step-000006/model.safetensors"
    one, two = (parameters(load_file(folder / last)) for folder in (alone, run))
    assert (one - two).norm() < 1e-2 * (one - start).norm()
    losses = [[x["loss"] for x in read_metrics(r) if x["kind"] == "train"] for r in (alone, run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_what_follows_evaluations_is_the_same_on_both_ranks(tiny_world, tmp_path):
    start(2, "tests/evaluations_driver.py", tiny_world, tmp_path)
    one, two = (read_json(tmp_path / f"rank{rank}.json") for rank in (0, 1))
    assert one == two
    assert len(one["evaluations"]) >= 3
    assert all(0 < e["score"] < 1 and e["ratio"] > 0 for e in one["evaluations"])
    assert sum(abs(value) for value in one["average"].values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(p.name for p in (ROOT / "accelerate_configs").iterdir()))
def test_every_configuration_launches_as_many_processes_as_asked_for(tiny_recipe, tmp_path, file):
    process = 2 if file.startswith(("gpu8", "multinode")) else 1
    words = [*flags(tiny_recipe, tmp_path), "--precision", "fp32"]
    done = call("train_student.py", *words, process=process, config=file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(tmp_path / "tiny" / "receipt.json")["processes"] == process


def parameters(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """What is trained, and the running means of BatchNorm."""
    names = sorted(name for name in state if not name.endswith("num_batches_tracked"))
    return torch.cat([state[name].flatten() for name in names])


SEEN = ((2, 1), (3, 1), (3, 0), (4, 1), (6, 1), (6, 0))  # (step, whether of training)


@pytest.mark.slow
def test_a_mistake_of_the_user_is_told_in_words_under_torchrun(tiny_recipe, tmp_path):
    words = [*flags(tiny_recipe, tmp_path), "--micro-batch", 8]
    done = call("train_student.py", *words, process=2)
    assert done.returncode == 1
    assert "wanted: 1 processes" in done.stderr
    assert "File" not in done.stderr.split("torch")[0]  # no traceback of ours
    assert not (tmp_path / "tiny").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_row_that_one_rank_cannot_read_stops_both(tiny_recipe, tmp_path, flip_picture):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_recipe.data.shards, shards)
    pictures = open_pictures(shards)
    shard = pictures.open(pictures.shard_ids("train")[1])
    flip_picture(shard, 3)
    words = [*flags(tiny_recipe, tmp_path / "runs"), "--data.shards", shards]
    done = call("train_student.py", *words, process=2, patience_s=500)
    assert done.returncode == 1
    assert f"train-000001.tar: the picture of {shard.keys[3]} at byte" in done.stderr
    assert "another process of this run has ended" in done.stderr
    assert "SIGKILL" not in done.stderr  # which torchrun sends to what has not ended in 30 seconds


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_told_to_stop_save_and_one_alone_goes_on(tiny_recipe, tmp_path):
    words = flags(tiny_recipe, tmp_path)
    words += ["--epochs", 40, "--run.evaluate-every", 40, "--run.log-every", 1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with subprocess.Popen(
        [*command, str(ROOT / "train_student.py"), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    ) as launcher:
        assert launcher.stdout is not None
        for line in launcher.stdout:
            if line.startswith("step 5/"):
                launcher.send_signal(signal.SIGTERM)
                break
        said = launcher.stdout.read()
    run = tmp_path / "tiny"
    assert (run / "requeue").is_file(), said
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert 5 <= int(checkpoint.name.removeprefix("step-")) < 120
    done = call("train_student.py", *words, "--run.resume", process=1, patience_s=400)
    assert done.returncode == 0, done.stderr
    assert f"resumed from {checkpoint}" in done.stdout
    steps = [line["step"] for line in read_metrics(run) if line["kind"] == "train"]
    assert steps == list(range(1, 121))
    assert not (run / "requeue").exists()
