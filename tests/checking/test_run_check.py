"""The command says everything once, on the right stream, with the right exit status."""

import json
import os
import runpy
import subprocess
from pathlib import Path

import pytest

from stillroom.cache.writer import this_host
from stillroom.checking.run_check import CheckOptions
from stillroom.errors import UserError

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_cache.py"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the tool in this process; returns status, stdout, stderr."""

    def calling(*words) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["check_cache.py", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(TOOL), run_name="__main__")
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return calling


@pytest.fixture
def words(spoilt_recipe) -> list[str]:
    """A recipe and the flags that make it that of the small cache."""
    found = ["tiny", "--data.shards", spoilt_recipe.data.shards, "--run.device", "cpu"]
    found += ["--teachers.0.path", spoilt_recipe.teachers[0].path, "--gate", "off"]
    return [*found, "--run.cache", spoilt_recipe.run.cache]


def spoil(cache: Path) -> None:
    file = next(path for path in cache.glob("train-000001.*/shard.json"))
    file.write_bytes(file.read_bytes()[:-3])


def test_a_whole_cache_gives_0_and_one_line_and_a_note(call, spoilt):
    status, out, err = call(spoilt)
    assert status == 0
    note, summary = out.splitlines()
    assert note.startswith("note: not compared with picture shards")
    assert summary.startswith("4 shards, 32 rows, ") and summary.endswith(": all is well")
    assert "MB/s" in summary and "100%" in err


def test_damage_gives_1_and_a_line_each_and_the_command(call, spoilt):
    spoil(spoilt)
    status, out, _ = call(spoilt)
    lines = out.splitlines()
    assert status == 1
    assert [line.partition(":")[0] for line in lines] == [
        "shard", "note", "fix", lines[-1].partition(":")[0],
    ]  # fmt: skip
    assert "train-000001" in lines[0] and lines[-1].endswith("1 problem")
    assert lines[-2] == f"fix: stillroom check-cache {spoilt} RECIPE --repair"


@pytest.mark.parametrize("flags_first", [True, False])
def test_our_flags_may_stand_anywhere_and_the_others_are_the_recipes(
    call, spoilt, words, flags_first
):
    own = ["--rerun", "4", "--rerun-seed", "3", "--workers", "1"]
    status, out, _ = call(*([*own, spoilt, *words] if flags_first else [spoilt, *words, *own]))
    assert status == 0, out
    assert "shapes: 4 rows" in out and "inner: 4 rows" in out and "argmax agreement" in out
    assert "not compared" not in out


def test_json_is_one_object_on_stdout_and_nothing_else(call, spoilt, words):
    spoil(spoilt)
    status, out, _ = call(spoilt, "--json")
    found = json.loads(out)
    assert (status, found["is_well"], len(found["problems"])) == (1, False, 1)
    assert found["problems"][0]["shard"] == "train-000001"
    assert found["problems"][0]["kind"] == "shard"
    status, out, _ = call(spoilt, *words, "--repair", "--rerun", "5", "--json")
    found = json.loads(out)
    assert (status, found["is_well"], found["problems"], found["fix"]) == (0, True, [], None)
    assert found["rerun"]["shapes"]["rows"] == 5 and found["rerun"]["shapes"]["rows_wrong"] == 0
    assert any("train-000001" in line for line in found["repaired"])


def test_gc_says_what_it_removed_and_without_it_dead_folders_are_notes(call, spoilt):
    with subprocess.Popen(["/bin/true"]) as child:
        pass
    dead = spoilt / "tmp" / f"val-000000.zarr-{this_host()}-{child.pid}-0123abcd"
    dead.mkdir()
    status, out, _ = call(spoilt)
    assert status == 0 and f"note: {dead}" in out and dead.is_dir()
    status, out, _ = call(spoilt, "--gc")
    assert status == 0 and f"removed: {dead}" in out and f"note: {dead}" not in out
    assert not dead.exists()


def test_a_mistake_gives_2_and_a_short_paragraph(call, spoilt, words, tmp_path):
    (tmp_path / "empty").mkdir()
    mistakes = (
        [],
        ["--json"],
        [spoilt / "identity.json"],
        [spoilt, *words, "--rerun", "0"],
        [spoilt, "--shards", tmp_path / "empty"],
        [spoilt, *words, "--batch", "x"],
        [spoilt, *words, "--rerun", "x"],
    )
    for mistake in mistakes:
        status, out, err = call(*mistake)
        assert (status, out) == (2, ""), mistake
        assert err.strip() and "Traceback" not in err, mistake


def test_help_explains_every_flag_with_its_default(call):
    status, out, _ = call("--help")
    assert status == 0
    for flag in (
        "--rerun N",
        "--rerun-seed",
        "--repair",
        "--gc",
        "--shards",
        "--workers",
        "--json",
    ):
        (text,) = [part for part in out.split("\n  --") if part.startswith(flag[2:])]
        assert "(default" in text.replace("\n", " "), flag
    assert "RECIPE" in out and "Exit status" in out


def test_wishes_that_make_no_sense_are_refused():
    for wrong in ({"rerun": 0}, {"rerun": -1}, {"workers": 0}):
        with pytest.raises(UserError):
            CheckOptions(**wrong)


def test_a_file_without_permission_is_said_in_words(call, spoilt, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, os.strerror(13), "rows")

    monkeypatch.setattr(os, "preadv", refuse)
    status, out, err = call(spoilt)
    assert (status, out) == (1, "")
    assert "could not be checked" in err and "Permission denied" in err and "Traceback" not in err
