"""A checkpoint is there whole or not at all, and what it holds is exact to the last bit."""

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import stillroom.training.checkpoint as checkpoint
from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import file_sha256, read_json
from stillroom.training.checkpoint import (
    clear_leftovers,
    load_checkpoint,
    newest_checkpoint,
    save_best,
    save_checkpoint,
)


class Training:
    """A small network with BatchNorm under AdamW; what it does is a function of its steps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.steps = 0

    def go(self, steps: int) -> "Training":
        for _ in range(steps):
            torch.manual_seed(self.steps)
            self.model(torch.rand(2, 3, 6, 6)).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps += 1
        return self

    def save(self, run: Path, keep: int = 2) -> Path:
        state = {"step": self.steps, "epochs": 9, "evaluations": []}
        return save_checkpoint(run, self.model, self.optimizer, state, keep)

    def load(self, run: Path) -> "Training":
        folder, state = newest_checkpoint(run)
        load_checkpoint(folder, self.model, self.optimizer)
        self.steps = state["step"]
        return self

    def tensors(self) -> list[torch.Tensor]:
        states = self.optimizer.state_dict()["state"]
        moments = [value for n in sorted(states) for _, value in sorted(states[n].items())]
        return [*self.model.state_dict().values(), *moments]


def equal(one: Training, two: Training) -> bool:
    pairs = zip(one.tensors(), two.tensors(), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def survive(work: Callable[[], object], moment: int) -> bool:
    """Run `work` in a forked child that is killed at its `moment`th act on the disk.

    Every rename, removal, making and flushing is an act; a tensor file is first left half written.
    Returns whether the child came to the end.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside torch's idle threads
        child = os.fork()
    if child == 0:
        acts = 0

        def killing(act, before=lambda *_: None):
            def either(*args, **kwargs):
                nonlocal acts
                acts += 1
                if acts == moment:
                    before(*args)
                    os.kill(os.getpid(), signal.SIGKILL)
                return act(*args, **kwargs)

            return either

        def half(path, data):
            path.write_bytes(data[: len(data) // 2])

        checkpoint.write_bytes = killing(checkpoint.write_bytes, half)
        for owner, name in (
            (os, "fsync"),
            (shutil, "rmtree"),
            (os, "rename"),
            (Path, "mkdir"),
        ):
            setattr(owner, name, killing(getattr(owner, name)))
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def test_a_resume_goes_on_as_if_nothing_had_been(tmp_path):
    straight, first = Training().go(7), Training().go(3)
    first.save(tmp_path)
    resumed = Training().load(tmp_path)
    assert equal(first, resumed)
    assert equal(straight, resumed.go(4))


def test_a_state_without_moments_is_restored_too(tmp_path):
    new = Training()
    new.save(tmp_path)
    assert equal(new.go(2), Training().load(tmp_path).go(2))


def test_a_network_with_shared_weights_is_kept_and_restored(tmp_path):
    class Tied(Training):
        def __init__(self) -> None:
            super().__init__()
            self.model.append(nn.Conv2d(1, 1, 1)).append(nn.Conv2d(1, 1, 1))
            self.model[4].weight = self.model[3].weight

    Tied().go(2).save(tmp_path)
    assert equal(Tied().load(tmp_path).go(1), Tied().go(3))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, is_durable):
    assert is_durable(Training().go(1).save(tmp_path))


def test_the_best_student_is_on_the_disk_before_it_has_its_name(tmp_path, is_durable):
    save_best(tmp_path, Training().model, {})
    assert is_durable(tmp_path / "best")


def test_killed_at_any_act_there_is_a_whole_checkpoint(tmp_path):
    one, two = Training().go(1), Training().go(2)
    for moment in range(1, 100):
        run = tmp_path / str(moment)
        one.save(run, keep=1)
        survived = survive(lambda run=run: two.save(run, keep=1), moment)
        found = Training().load(run)
        assert equal(found, one if found.steps == 1 else two)
        assert found.steps in (1, 2)
        clear_leftovers(run)
        two.save(run, keep=1)  # what lies about is in nobody's way
        assert equal(Training().load(run), two)
        assert names(run) == ["step-000002"]
        if survived:
            assert moment > 8
            return
    pytest.fail("the child never came to the end")


def test_killed_at_any_act_the_best_student_is_whole(tmp_path):
    one, two = Training().go(1).model, Training().go(2).model
    for moment in range(1, 100):
        run = tmp_path / str(moment)
        run.mkdir()
        save_best(run, one, {"number": 1})
        survived = survive(lambda run=run: save_best(run, two, {"number": 2}), moment)
        clear_leftovers(run)
        about = read_json(run / "best" / "student.json")
        weights = load_file(run / "best" / "student.safetensors")
        assert file_sha256(run / "best" / "student.safetensors") == about["weights_sha256"]
        wanted = (one if about["number"] == 1 else two).state_dict()
        assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
        assert [path.name for path in run.iterdir()] == ["best"]
        if survived:
            assert moment > 6
            assert about["number"] == 2
            return
    pytest.fail("the child never came to the end")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["bit", "cut", "gone"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, file, harm):
    one = Training().go(1)
    one.save(tmp_path)
    path = Training().go(2).save(tmp_path) / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(data if harm == "bit" else data[:-3])
    said = []
    folder, state = newest_checkpoint(tmp_path, said.append)
    assert (folder.name, state["step"]) == ("step-000001", 1)
    assert len(said) == 1
    assert "step-000002 is damaged" in said[0]
    assert equal(Training().load(tmp_path), one)


def test_without_a_readable_checkpoint_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match="overwrite"):
        newest_checkpoint(tmp_path)
    folder = Training().go(1).save(tmp_path)
    (folder / "state.json").write_text("{}")
    with pytest.raises(DamageError, match="no checkpoint"):
        newest_checkpoint(tmp_path)


def test_older_checkpoints_are_pruned_after_the_new_one_is_there(tmp_path, monkeypatch):
    training = Training()
    seen = []
    rmtree = shutil.rmtree

    def watched(path, **more):
        if Path(path).name.startswith("step-"):
            seen.append((Path(path).name, newest_checkpoint(tmp_path)[1]["step"]))
        rmtree(path, **more)

    monkeypatch.setattr(shutil, "rmtree", watched)
    for _ in range(4):
        training.go(1).save(tmp_path, keep=2)
    assert names(tmp_path) == ["step-000003", "step-000004"]
    assert seen == [("step-000001", 3), ("step-000002", 4)]


def test_checkpoints_are_ordered_by_number_and_not_by_name(tmp_path):
    training = Training()
    for steps in (999_999, 1_000_000):
        training.steps = steps
        training.save(tmp_path, keep=1)
    assert names(tmp_path) == ["step-1000000"]


def test_a_damaged_later_checkpoint_does_not_push_out_a_good_one(tmp_path):
    Training().go(1).save(tmp_path)
    later = Training().go(8).save(tmp_path)
    (later / "state.json").write_text("{}")
    resumed = Training().load(tmp_path).go(2)
    resumed.save(tmp_path, keep=1)
    assert names(tmp_path) == ["step-000003"]
    assert equal(Training().load(tmp_path), resumed)


def test_a_state_holds_neither_pickle_nor_place(tmp_path):
    folder = Training().go(1).save(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    body = json.loads((folder / "state.json").read_text())
    assert body.keys() == {"format", "files", "step", "epochs", "evaluations", "sha256"}
