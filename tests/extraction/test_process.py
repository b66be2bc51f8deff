"""Which of how many: from torchrun, a Slurm array, or nothing; and one process per GPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import stillroom.extraction.process as process
from stillroom.errors import UserError
from stillroom.extraction.process import ProcessContext, process_context, spread_over_gpus

ARRAY = "SLURM_ARRAY_TASK_"


def place(**environment: object) -> tuple[int, int]:
    found = process_context("cpu", {name: str(value) for name, value in environment.items()})
    return found.rank, found.world


def array(task: int, first: int, count: int, step: int = 1) -> tuple[int, int]:
    words = {"ID": task, "MIN": first, "COUNT": count, "STEP": step}
    return place(**{ARRAY + name: value for name, value in words.items()})


def test_alone_it_is_the_only_one():
    assert process_context("cpu", {}) == ProcessContext(rank=0, world=1, device="cpu")
    assert process_context("cpu", {}).is_first


def test_torchrun_and_accelerate_say_rank_and_world():
    assert place(RANK=3, WORLD_SIZE=8, LOCAL_RANK=1) == (3, 8)
    assert place(RANK=1, WORLD_SIZE=2, **{ARRAY + "ID": 5, ARRAY + "COUNT": 9}) == (1, 2)


def test_the_tasks_of_an_array_are_ranks_from_0():
    assert [array(task, 0, 4) for task in range(4)] == [(r, 4) for r in range(4)]
    assert [array(task, 1, 3) for task in (1, 2, 3)] == [(r, 3) for r in range(3)]
    assert [array(task, 2, 3, step=4) for task in (2, 6, 10)] == [(r, 3) for r in range(3)]
    assert array(5, 5, 1) == (0, 1)  # one task of an array, started again alone


def test_a_ragged_array_still_gives_ranks_within_the_world():
    assert all(0 <= array(task, 1, 3)[0] < 3 for task in (1, 5, 6))


def test_cuda_where_there_is_none_is_refused_and_auto_takes_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        process_context("cuda", {})
    assert process_context("auto", {}).device == "cpu"


def test_each_local_rank_has_its_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = [
        process_context("auto", {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": n}) for n in "012"
    ]
    assert [found.device for found in devices] == ["cuda:0", "cuda:1", "cuda:0"]


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    """Two GPUs, none of which is used, and a command that ends with status 10 + rank."""
    script = tmp_path / "command.py"
    script.write_text("import os, sys; sys.exit(10 + int(os.environ['RANK']))")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(sys, "orig_argv", ["python", str(script)])
    for name in ("RANK", ARRAY + "ID"):
        monkeypatch.delenv(name, raising=False)
    return script


def test_alone_with_two_gpus_it_runs_twice_and_returns_the_worst_status(two_gpus):
    assert spread_over_gpus("auto") == 11
    assert spread_over_gpus("cpu") is None


def test_a_child_that_failed_is_not_hidden_by_one_that_was_told_to_stop(two_gpus):
    two_gpus.write_text("import os, sys; sys.exit((75, 1)[int(os.environ['RANK'])])")
    assert spread_over_gpus("auto") == 1


def test_started_by_a_launcher_it_does_not_spread(two_gpus, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert spread_over_gpus("auto") is None


def test_a_child_that_was_killed_is_no_success(two_gpus):
    two_gpus.write_text("import os; os.environ['RANK'] == '1' and os.kill(os.getpid(), 9)")
    assert spread_over_gpus("auto") == 128 + 9


def told_by(script: Path, tmp_path: Path, monkeypatch, *words: str) -> list[list[str]]:
    """What each child finds in its environment and behind its script, by rank."""
    script.write_text(
        "import os, pathlib, sys\n"
        f"told = pathlib.Path({str(tmp_path)!r}, 'told' + os.environ['RANK'])\n"
        "names = ('LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'OMP_NUM_THREADS')\n"
        "told.write_text(' '.join([*(os.environ[n] for n in names), *sys.argv[1:]]))\n"
    )
    monkeypatch.setattr(sys, "orig_argv", ["python", str(script), *words])
    assert spread_over_gpus("auto") == 0
    return [(tmp_path / f"told{rank}").read_text().split() for rank in range(2)]


def test_children_get_every_word_of_the_command_also_debug(two_gpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(two_gpus), "tiny"])  # as `run_command` leaves it
    found = told_by(two_gpus, tmp_path, monkeypatch, "tiny", "--debug")
    assert [words[4:] for words in found] == [["tiny", "--debug"]] * 2


@pytest.mark.parametrize(("cores", "each"), [(8, "4"), (5, "2"), (1, "1")])
def test_children_share_the_cores_that_this_process_may_use(
    two_gpus, tmp_path, monkeypatch, cores, each
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    found = told_by(two_gpus, tmp_path, monkeypatch)
    assert found == [["0", "2", "2", each], ["1", "2", "2", each]]


def test_a_number_of_threads_that_the_user_gave_is_kept(two_gpus, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [words[3] for words in told_by(two_gpus, tmp_path, monkeypatch)] == ["3", "3"]


def test_interrupted_it_ends_its_children_first(two_gpus, tmp_path, monkeypatch):
    two_gpus.write_text(
        "import os, pathlib, signal, sys, time\n"
        "def end(*_):\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'ended' + os.environ['RANK']).touch()\n"
        "    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).touch()\n"
        "time.sleep(1000)\n"
    )
    wait, waited = subprocess.Popen.wait, []

    def interrupted(child, timeout=None):
        """Ctrl-C comes while the first child is waited for."""
        until = time.monotonic() + 100
        while not all((tmp_path / rank).exists() for rank in "01"):
            assert time.monotonic() < until
            time.sleep(0.05)
        waited.append(child)
        if len(waited) == 1:
            raise KeyboardInterrupt
        return wait(child, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spread_over_gpus("auto")
    assert all((tmp_path / f"ended{rank}").exists() for rank in "01")
    assert all(child.returncode == 75 for child in waited)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_tells_its_children(two_gpus, tmp_path, number):
    two_gpus.write_text(
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).touch()\n"
        "time.sleep(1000)\n"
    )
    # Here the waiting is done in another process, so that the signal is not sent to pytest.
    source = Path(process.__file__).parents[2]
    code = (
        f"import sys, torch; sys.path.insert(0, {str(source)!r})\n"
        f"sys.orig_argv = ['python', {str(two_gpus)!r}]\n"
        "torch.cuda.device_count = lambda: 2\n"
        "from stillroom.extraction.process import spread_over_gpus\n"
        "sys.exit(spread_over_gpus('auto'))"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ)) as parent:
        until = time.monotonic() + 100
        while not all((tmp_path / rank).exists() for rank in "01"):
            assert time.monotonic() < until
            time.sleep(0.05)
        parent.send_signal(number)
        assert parent.wait(60) == 75
