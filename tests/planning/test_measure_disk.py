import os
import threading

import pytest

import stillroom.planning.measure_disk as disk
from stillroom.errors import Stopped, UserError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Write 4 MB in blocks of 1 MB."""
    for name, value in (("_BLOCK", 1 << 20), ("_FLUSHED", 1 << 21), ("_LEAST", 1 << 22)):
        monkeypatch.setattr(disk, name, value)
    monkeypatch.setattr(disk, "_MOST", 1 << 22)


def test_what_is_written_is_flushed_dropped_read_and_never_has_a_name(tmp_path, monkeypatch):
    seen = []

    def watched(name):
        plain = getattr(os, name)

        def act(*words):
            seen.append((name, list(tmp_path.iterdir())))
            return plain(*words)

        monkeypatch.setattr(os, name, act)

    for name in ("write", "fdatasync", "fsync", "posix_fadvise", "preadv"):
        watched(name)
    write_gb_per_s, read_gb_per_s, gb = disk.measure_disk(tmp_path, 60.0, threading.Event())
    assert write_gb_per_s > 0 and read_gb_per_s > 0 and gb == 4 * (1 << 20) / 1e9
    names = [name for name, _ in seen]
    assert names.count("fdatasync") == 2 and names.count("preadv") == 4
    assert names.index("fsync") < names.index("posix_fadvise") < names.index("preadv")
    assert not any(files for _, files in seen)


def test_a_disk_that_is_too_full_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda _: 200_000_000)
    with pytest.raises(UserError, match=r"too full(.|\n)*200 MB free(.|\n)*--disk-gb-per-s"):
        disk.measure_disk(tmp_path, 60.0, threading.Event())


def test_it_stops_between_two_blocks_and_leaves_nothing(tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        disk.measure_disk(tmp_path, 60.0, stop)
    assert not list(tmp_path.iterdir())
