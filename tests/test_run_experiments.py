"""Several recipes and seeds by one command: a failure does not stop the others, a stop saves, the
same command does what is missing and no more.
"""

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from stillroom.errors import UserError
from stillroom.jsonfile import read_json

HERE = Path(__file__).parent
TOOL = HERE.parent / "tools" / "run_experiments.py"
RECIPES = f"{HERE / 'small_recipes.py'}:"


@pytest.fixture(scope="module")
def tool():
    return import_module("stillroom.commands.experiments")


def test_words_are_recipes_our_flags_and_those_of_the_recipes(tool):
    words = ["a", "b", "--epochs", "3", "--seeds", "1", "2", "--data.size", "8", "-1", "--out", "x"]
    recipes, own, flags = tool.parse(words)
    assert recipes == ["a", "b"] and flags == ["--epochs", "3", "--data.size", "8", "-1"]
    assert own.seeds == [1, 2] and own.out == Path("x") and own.source is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "which recipes"),
        ("--seeds 1", "which recipes"),
        ("a --epochs 1 --epochs 2", "--epochs"),
        ("a --run.keep 1 --run.keep=2", "--run.keep"),
        ("a --run.preflight --run.no-preflight", "--run.preflight"),
        ("a --label_share 1 --label-share 1", "--label-share"),
        ("a --seeds 1 --seeds 2", "--seeds"),
        ("a --seeds 1 1", "a seed is given twice"),
        ("a --seed 1", "--seeds"),
        ("a --run.name x", "--run.name"),
        ("a --run.resume", "--run.resume"),
        ("a --run.additional-epochs=3", "a larger --epochs"),
    ],
)
def test_flags_that_cannot_be_are_refused(tool, words, said):
    with pytest.raises(UserError, match=said):
        tool.parse(words.split())


def test_what_was_done_before_keeps_its_record(tool, tmp_path, capsys):
    path = tmp_path / "experiments.json"
    ended = {"state": "done", "seconds": 3.2, "log": "a.log"}
    tool.Book(path, {"seeds": [0]}).tell("train a", ended)
    book = tool.Book(path, {"seeds": [0, 1]})
    book.tell("train a", {"state": "done"})
    book.tell("train b", {"state": "failed", "reason": "no\n  fix: so", "log": "b.log"})
    found = read_json(path)
    assert found["jobs"]["train a"] == ended and found["seeds"] == [0, 1]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "train a: done in 3 s" and said[1] == "train a: done already"
    assert said[2:] == ["train b: failed, b.log: no", "  fix: so"]


def start(world: Path, out: Path) -> subprocess.Popen[str]:
    """Start the command in a group of its own, as a shell would."""
    recipes = [f"{RECIPES}{name}" for name in ("teacher", "plain", "broken", "distilled")]
    flags = ["--data.shards", world / "shards", "--run.out", out, "--run.cache", out / "cache"]
    more = ["--epochs", 40, "--run.device", "cpu", "--run.log-every", 1]
    return subprocess.Popen(
        [sys.executable, str(TOOL), *recipes, "--seeds", "3", *map(str, [*flags, *more])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(text: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while not (log.is_file() and text in log.read_text()):
        assert time.monotonic() < deadline, f"no {text!r} in {log}"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_stopped_command_goes_on_past_a_failure_to_the_table(tiny_world, tmp_path):
    out = tmp_path / "out"
    child = start(tiny_world, out)
    wait_for("step 5/", out / "experiments" / "logs" / "train-small-plain-seed3.log")
    os.killpg(child.pid, signal.SIGINT)  # Ctrl-C
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 75, said
    assert "train small-plain-seed3: stopped" in said and "saved at step" in said
    assert (out / "small-plain-seed3" / "requeue").is_file()
    jobs = read_json(out / "experiments" / "experiments.json")["jobs"]
    assert jobs["train small-teacher"]["state"] == "done" and "cache small" not in jobs
    trained = jobs["train small-teacher"]["seconds"]

    child = start(tiny_world, out)
    said, _ = child.communicate(timeout=100)
    assert child.returncode == 1, said
    jobs = read_json(out / "experiments" / "experiments.json")["jobs"]
    assert "train small-teacher: done already" in said
    assert jobs["train small-teacher"]["seconds"] == trained
    log = (out / "experiments" / "logs" / "train-small-plain-seed3.log").read_text()
    assert "--run.resume" in log and "resumed from" in log
    assert "nothing-of-that-name" in jobs["train small-broken-seed3"]["reason"]
    assert jobs["evaluate small-broken-seed3"]["state"] == "skipped"
    bad = {name for name, job in jobs.items() if job["state"] != "done"}
    assert bad == {"train small-broken-seed3", "evaluate small-broken-seed3"}

    rows = read_json(out / "experiments" / "comparison.json")["rows"]
    names = [("teacher", "small-teacher"), ("without", "small-plain"), ("with", "small")]
    assert [(row["role"], row["recipe"]) for row in rows] == names
    for row in rows:
        assert row["ms"] > 0 and row["training_s"] > 0 and row["score"] > 0.1
    assert "what differs" in said and "mIoU" in said
