"""However a command of ours ends, alone or as one of two ranks, all that it said is there and its
status says why.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# One process imports, and forks for each case, so that each ends as an interpreter does.
DRIVER = """
import json, os, pathlib, sys, threading, time
from stillroom.cli import recipe_from, run_command
from stillroom.errors import DamageError, FailureError, Stopped, UserError

def end(code):
    print("said before")
    exec(code, globals())
    print("said after")

cases, folder = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
for number, (code, world, words) in enumerate(cases):
    if os.fork() == 0:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{number}.{name}", os.O_CREAT | os.O_WRONLY), descriptor)
        os.environ |= {"WORLD_SIZE": str(world), "RANK": "0"}
        sys.argv = ["tool.py", *words]
        run_command(lambda: end(code))
    status = os.waitstatus_to_exitcode(os.wait()[1])
    (folder / f"{number}.status").write_text(str(status))
"""
# what the command does, its status, and what stands on stderr
ENDS = {
    "it is done": ("pass", 0, ""),
    "a mistake": ("raise UserError('no such thing')", 2, "stillroom: no such thing"),
    "a failure": ("raise FailureError('no disk')", 1, "stillroom: no disk"),
    "damage": ("raise DamageError('a flipped bit')", 1, "stillroom: a flipped bit"),
    "told to stop": ("raise Stopped('told to stop')", 75, "stillroom: told to stop"),
    "Ctrl-C": ("raise KeyboardInterrupt", 130, "stillroom: interrupted"),
    "Ctrl-C in front of a thread": (
        "threading.Thread(target=time.sleep, args=(100,)).start(); raise KeyboardInterrupt",
        130,
        "stillroom: interrupted",
    ),
    "a mistake of ours": ("raise KeyError('x')", 1, "failed: KeyError: 'x'"),
    "the system": ("raise OSError(5, 'broken')", 1, "failed: OSError: [Errno 5] broken"),
    "no permission": ("raise PermissionError(13, 'no', '/')", 2, "/ may not be read or written"),
    "status of children": ("sys.exit(75)", 75, ""),
    "no such flag": ("recipe_from(['tiny', '--no-such-flag'])", 2, "no-such-flag"),
    "no such value": ("recipe_from(['tiny', '--batch', 'many'])", 2, "batch"),
    "no such recipe": ("recipe_from(['tinny'])", 2, "stillroom: there is no recipe 'tinny'"),
    "no recipe": ("recipe_from([])", 2, "stillroom: which recipe?"),
    "help": ("recipe_from(['--help'])", 0, ""),
    "help of a recipe": ("recipe_from(['tiny', '--help'])", 0, ""),
}
INTERRUPTED = ("Ctrl-C", "Ctrl-C in front of a thread")
CASES = [
    *((end, 2, ()) for end in ENDS),
    *((end, 1, ()) for end in ("it is done", "a mistake", "no such flag", *INTERRUPTED)),
    *(
        (end, ranks, ("--debug",))
        for end in ("a mistake", "Ctrl-C", "the system")
        for ranks in (1, 2)
    ),
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The status and both streams of every case."""
    folder = tmp_path_factory.mktemp("ended")
    cases = [(ENDS[end][0], world, words) for end, world, words in CASES]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(cases), str(folder)],
        env=environment,
        check=True,
        timeout=100,
    )
    texts = [
        [(folder / f"{n}.{s}").read_text() for s in ("status", "out", "err")]
        for n in range(len(CASES))
    ]
    return dict(zip(CASES, texts, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}, {c[1]} ranks {' '.join(c[2])}")
def test_a_command_ends_with_its_status_and_all_that_it_said(ended, case):
    status, out, err = ended[case]
    end, _, words = case
    _, wanted, said = ENDS[end]
    assert int(status) == wanted, err
    assert out.startswith("said before\n") and ("said after" in out) == (end == "it is done")
    assert ("Traceback" in err) == bool(words)
    assert words or said in err
    if "help" in end:
        assert "usage: tool.py" in out


GPUS = """
import runpy, sys
import torch
torch.cuda.device_count = lambda: 2  # none is used: is_available says so
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def stage_1(*words: str, gpus: int = 1, **place: str) -> subprocess.CompletedProcess[str]:
    """Run stage 1's command, with so many GPUs to be seen, or as the rank that `place` says."""
    tool = str(Path(__file__).parents[1] / "tools" / "cache_teacher.py")
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, *(("-c", GPUS) if gpus > 1 else ()), tool, *words],
        env={**environment, **place},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def words(tiny_recipe, tmp_path) -> list[str]:
    """The flags of the recipe `tiny` with a cache of its own."""
    shards, teacher = tiny_recipe.data.shards, tiny_recipe.teachers[0]
    found = ["tiny", "--data.shards", shards, "--run.cache", str(tmp_path / "cache")]
    found += ["--teachers.0.path", teacher.path, "--teachers.0.taps", "inner", "encoder.2"]
    return [*found, "--gate", "off"]


def test_one_rank_of_two_does_all_of_stage_1_without_the_other_and_says_so(words):
    done = stage_1(*words, RANK="0", WORLD_SIZE="2")  # no address: no group could be opened
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(": complete\n")


def test_on_two_gpus_both_children_fill_one_cache(words):
    done = stage_1(*words, gpus=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": complete\n") == 1  # of the first rank


def test_on_two_gpus_a_mistake_is_the_status_of_both_and_debug_shows_where(words):
    done = stage_1(*words, "--micro-batch", "5", "--debug", gpus=2)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("Traceback") == 2
    assert done.stderr.count("the batch is not a whole number of micro-batches") == 2
