"""What a dead writer left is removed; what a live one writes is not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillroom.cache.folder import open_cache
from stillroom.cache.writer import this_host
from stillroom.checking.leftovers import SILENT_S, find_dead, remove_dead
from stillroom.types import ShardId


@pytest.fixture(scope="module")
def dead_process() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["/bin/true"]) as child:
        pass
    return child.pid


def make(cache: Path, owner: str, silent_s: float = 0) -> Path:
    """A temporary folder with a file of 100 bytes, last written some time ago."""
    folder = cache / "tmp" / f"train-000001.zarr-{owner}-0123abcd"
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "file").write_bytes(b"x" * 100)
    then = time.time() - silent_s
    for path in (folder / "part" / "file", folder / "part", folder):
        os.utime(path, (then, then))
    return folder


def test_folders_of_dead_processes_go_and_those_of_live_ones_stay(spoilt, dead_process):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as live:
        dead = make(spoilt, f"{this_host()}-{dead_process}")
        kept = [
            make(spoilt, f"{this_host()}-{live.pid}", silent_s=100 * SILENT_S),
            make(spoilt, f"{this_host()}-{os.getpid()}"),
            make(spoilt, f"elsewhere-{dead_process}", silent_s=SILENT_S - 60),
        ]
        old = make(spoilt, f"elsewhere-{live.pid}", silent_s=SILENT_S + 60)
        removed = remove_dead(spoilt)
        live.communicate(b"\n")
    assert set(removed) == {dead, old}
    assert sorted((spoilt / "tmp").iterdir()) == sorted(kept)


def test_one_write_in_a_silent_folder_keeps_it(spoilt):
    folder = make(spoilt, "elsewhere-1", silent_s=2 * SILENT_S)
    os.utime(folder / "part" / "file")
    assert remove_dead(spoilt) == []


def test_a_writer_at_work_keeps_its_folder(spoilt):
    with open_cache(spoilt).writer(ShardId("train", 1)):
        (folder,) = (spoilt / "tmp").iterdir()
        assert find_dead(spoilt) == remove_dead(spoilt) == []
        assert folder.is_dir()


def test_names_that_are_not_ours_are_removed_only_when_they_are_old(spoilt):
    for name in ("mine", "a-b-c-d", f"x-{this_host()}-1-nothex"):
        (spoilt / "tmp" / name).write_text("x")
    assert remove_dead(spoilt) == []
    os.utime(spoilt / "tmp" / "mine", (1, 1))
    assert remove_dead(spoilt) == [spoilt / "tmp" / "mine"]


def test_quarantine_is_kept(spoilt):
    place = open_cache(spoilt).quarantine(ShardId("val", 0), "a test")
    assert place is not None
    assert remove_dead(spoilt) == [] and place.is_dir()
