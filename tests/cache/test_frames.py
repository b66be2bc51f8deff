"""Rows as bytes: nothing larger than a row is ever unpacked."""

import os

import numpy as np
import pytest

from stillroom.cache.frames import crc32c, decode_frame, encode_frame, is_finite, sync_file
from stillroom.errors import DamageError


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_check_for_finite_values_is_that_of_numpy(dtype: str):
    values = np.random.default_rng(2).integers(0, 256, 4 << 20, np.uint8).view(dtype)
    for value in (values, values[np.isfinite(values)], np.zeros(3, dtype)):
        assert is_finite(value) == np.isfinite(value).all()
    last = np.full(600_000, 65504, dtype)
    assert is_finite(last)
    last[-1] = -np.inf
    assert not is_finite(last)


def test_a_file_is_flushed_and_then_dropped_from_memory(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("flushed"))
    monkeypatch.setattr(os, "posix_fadvise", lambda *words: calls.append(words[1:]))
    path = tmp_path / "file"
    path.write_bytes(b"data")
    sync_file(path)
    assert calls == ["flushed", (0, 0, os.POSIX_FADV_DONTNEED)]  # all of it
    monkeypatch.delattr(os, "posix_fadvise")  # as on macOS
    sync_file(path)
    assert calls[2:] == ["flushed"]


def test_a_decompression_bomb_is_refused_before_it_is_unpacked():
    bomb = np.frombuffer(encode_frame(np.zeros(1 << 26, np.uint8), 1), np.uint8)
    with pytest.raises(DamageError, match="not a zstd frame"):
        decode_frame(bomb, np.empty(40, np.uint8))
    lying = bytearray(bomb.tobytes())  # the header states 40 bytes, the blocks hold 64 MB
    lying[4] = 0x20
    del lying[6:9]
    lying[5] = 40
    out = np.full(41, 9, np.uint8)
    with pytest.raises(DamageError):
        decode_frame(np.frombuffer(bytes(lying), np.uint8), out[:40])
    assert out[40] == 9 and crc32c(bomb) == crc32c(bomb.tobytes())
