"""The command as users run it."""

import io
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from stillroom.__main__ import main

TOOL = Path(__file__).resolve().parents[2] / "tools" / "plan_cache.py"


def words(world, cache, *more):
    data = ["--data.shards", world / "shards", "--teachers.0.path", world / "teacher"]
    place = ["--run.cache", cache, "--run.device", "cpu", "--batch", 8, "--micro-batch", 4]
    every = [sys.executable, TOOL, "tiny", *data, *place, "--minutes", 0.05, *more]
    return list(map(str, every))


def run(*given):
    """Run the command in this process; return its status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["stillroom", "plan", *map(str, given)])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code, out.getvalue(), err.getvalue()


def plan(world, cache, *more):
    return run(*words(world, cache, *more)[2:])


@pytest.fixture(scope="module")
def ran(tiny_world, tmp_path_factory):
    """The tool on the tiny world with teachers that are said to be slow, and the place it wrote."""
    place = tmp_path_factory.mktemp("plan") / "some" / "cache"
    given = ("--teacher-ms", 500, "--student-ms", 2, "--disk-gb-per-s", 3, "--pictures", 120000)
    status, out, err = plan(tiny_world, place, *given, "--gpus", 2, "--cores", 8, "--epochs", 30)
    assert status == 0, err
    return out, place


def test_it_prints_what_was_measured_and_given_a_table_and_flags(ran):
    lines = ran[0].splitlines()
    assert lines[0] == "teachers  500 ms a row (given)" and lines[1].startswith("student   2 ms")
    assert lines[3] == "disk      3 GB/s written, 3 GB/s read (given)"
    setting = next(line for line in lines if line.startswith("setting"))
    assert "120000 training pictures, 30 epochs; 160000 rows are kept" in setting
    assert "GPUs or processes: 2, cores of each: 8" in setting
    table = [line.split() for line in lines]
    (whole,) = (row for row in table if row[:3] == ["whole", "cache", "*"])
    rate, online, waits, epoch = whole[-4:]
    assert (rate, online, waits, epoch) == ("1000", "3.984", "student", "2")  # 2 ms, 502 ms
    assert float(whole[-5]) == pytest.approx(160000 * 0.5 / 2 / 3600, rel=0.1)
    assert any(line.startswith("Cache: ") for line in lines)
    assert lines[-1] == "flags: --codec.shapes float16 --codec.inner float16"


def test_the_flags_that_it_prints_are_those_of_the_recipe(ran):
    from stillroom.cli import recipe_from

    flags = ran[0].splitlines()[-1].removeprefix("flags: ").split()
    assert recipe_from(["tiny", *flags]).codec == {"shapes": "float16", "inner": "float16"}


def test_nothing_that_was_written_stays(ran):
    assert not list(ran[1].parents[1].iterdir())  # nor a folder that was not there


def test_without_anything_given_all_is_measured(tiny_world, tmp_path):
    status, out, err = plan(tiny_world, tmp_path, "--pictures-measured", 8)
    assert status == 0, err
    measured = out.splitlines()
    assert re.search(r"measured on cpu, [48] rows", measured[0]) and "measured" in measured[1]
    assert re.search(r"disk +\S+ GB/s written, \S+ GB/s read \(measured, 0\.\d GB\)", measured[3])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--gpus", "0"), "no such --gpus"),
        (("--disk-gb-per-s", "-1"), "no such --disk-gb-per-s"),
        (("--teacher-ms", "nan"), "no such --teacher-ms"),
        (("--gpus", "3"), "cannot be dealt evenly"),
        (("--gpus", "two"), "invalid int value: 'two'"),
    ],
)
def test_a_users_mistake_is_one_paragraph(tiny_world, tmp_path, more, what):
    status, _, err = plan(tiny_world, tmp_path, *more)
    assert status == 2 and what in err
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_distils_nothing_has_nothing_to_plan(tiny_world):
    status, _, err = run("tiny-plain", "--data.shards", tiny_world / "shards")
    assert status == 2 and "no teacher, so there is nothing to cache" in err


def test_it_can_be_stopped_and_leaves_nothing(tiny_world, tmp_path):
    child = subprocess.Popen(words(tiny_world, tmp_path, "--minutes", 5), stderr=subprocess.PIPE)
    for _ in range(600):
        if list(tmp_path.glob(".plan-*")):
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 75 and b"told to stop" in said
    assert not list(tmp_path.iterdir())
