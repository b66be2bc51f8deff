"""Many files, few open, none closed under a thread that reads it."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from stillroom.errors import DamageError
from stillroom.random_access import RandomAccessFile


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RandomAccessFile]:
    """Ten files that each hold their own number; two may be open."""
    monkeypatch.setattr(RandomAccessFile, "_recent", deque(maxlen=2))
    for number in range(10):
        (tmp_path / f"{number}").write_bytes(bytes([number]) * 1000)
    return [RandomAccessFile(tmp_path / f"{number}") for number in range(10)]


def _is_open(number: int) -> bool:
    return Path(f"/proc/self/fd/{number}").exists()


def test_a_file_is_closed_after_others_but_not_while_it_is_held(files):
    held = files[0].open()
    assert files[0].open() is held
    for other in files[1:]:
        other.open()
    assert os.pread(held.number, 9, 0) == bytes(9) and files[0].open() is held
    assert sum(file._last() is not None for file in files) == 3, "two, and the one that is held"
    number = held.number
    del held
    assert not _is_open(number)
    assert os.pread(files[0].open().number, 9, 0) == bytes(9), "opened again when it is read again"


def test_a_file_is_closed_with_its_owner(files):
    numbers = [files[8].open().number, files[9].open().number]
    files[8].close()
    files.pop()
    assert not any(map(_is_open, numbers))


def test_threads_read_the_right_file_while_others_have_theirs_closed(files):
    def read(seed: int) -> bool:
        right = True
        for number in np.random.default_rng(seed).integers(10, size=2000).tolist():
            opened = files[number].open()
            right &= os.pread(opened.number, 1000, 0) == bytes([number]) * 1000
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


def test_a_file_that_went_away_is_damage_that_names_it(files):
    files[3].path.unlink()
    with pytest.raises(DamageError, match=f"{files[3].path} is missing"):
        files[3].open()
