"""`make bench-gpu`: a part that fails loses only itself; what needs a GPU is not called passed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stillroom.jsonfile import read_json

ROOT = Path(__file__).resolve().parents[1]


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark as a user would, on a machine without a GPU."""
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        check=False,
    )


def result(out: Path) -> dict[str, Any]:
    """The parts of the only result file, which says that it is of a CPU."""
    (path,) = out.iterdir()
    assert path.name.startswith("gpu_rehearsal_cpu")
    return read_json(path)["parts"]


def test_without_a_gpu_it_says_what_to_do(tmp_path):
    done = run("--out", tmp_path / "out")
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr and "make bench-gpu DEVICE=cpu" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_part_that_is_not_there_is_refused_with_the_list(tmp_path):
    done = run("--device", "cpu", "--parts", "stage_3", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "stage_3" in done.stderr and "stage_2_fp16" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_is_written_down_and_the_next_one_runs(tmp_path):
    words = ("--device", "cpu", "--parts", "gpu_tests", "stage_2_fp16", "--out", tmp_path)
    done = run(*words, PYTEST_ADDOPTS="--no-such-option")
    assert done.returncode == 1, done.stderr
    parts = result(tmp_path)
    assert parts["gpu_tests"]["outcome"] == "failed"
    assert parts["gpu_tests"]["last_lines"][-1] == "RuntimeError: pytest ended with status 4"
    assert any("--no-such-option" in line for line in parts["gpu_tests"]["last_lines"])
    assert str(ROOT) not in str(parts) and sys.prefix not in str(parts)
    assert parts["stage_2_fp16"]["outcome"] == "needs a GPU"


def test_a_part_that_takes_too_long_is_ended_and_written_down(tmp_path):
    words = ("--device", "cpu", "--parts", "stage_1", "--limit-s", 0.2, "--out", tmp_path)
    assert run(*words).returncode == 1
    part = result(tmp_path)["stage_1"]
    assert part["outcome"] == "failed" and part["reason"].startswith("killed")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_rehearsal_goes_through_every_part(tmp_path):
    done = run("--device", "cpu", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = result(tmp_path)
    outcomes = {name: part["outcome"] for name, part in parts.items()}
    assert {name for name in outcomes if outcomes[name] == "needs a GPU"} == {
        "gpu_tests",
        "stage_2_fp16",
    }
    assert set(outcomes.values()) == {"needs a GPU", "passed"}
    assert parts["two_ranks"]["processes"] == 2
    for precision in ("fp32", "bf16"):
        for kind in ("distilled", "alone"):
            assert parts[f"stage_2_{precision}"][kind]["steps"] == 3
    terms = parts["stage_2_fp32"]["alone"]["first_line"]
    assert set(terms) == {"loss", "term_bce", "term_dice"}
