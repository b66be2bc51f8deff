"""What the disk of a folder writes and reads in GB/s, by a file without a name."""

import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from stillroom.errors import UserError
from stillroom.os_errors import free_bytes
from stillroom.signals import raise_if_stopped

_BLOCK = 1 << 23
_FLUSHED = 1 << 26  # bytes between two flushes, so that memory does not take it all
_LEAST = 1 << 26  # bytes; below it a disk's own memory is what is measured
_MOST = 1 << 30
_SPARED = 1 << 28  # bytes left to others


def measure_disk(folder: Path, limit_s: float, stop: threading.Event) -> tuple[float, float, float]:
    """Write, flush and read back up to 1 GB, or as much as is written in half of `limit_s`. Return
    the GB/s of writing (until it is durable) and of reading, and the GB that were written.

    The file never has a name, so it is gone with this process however that ends. Raises UserError
    where there is no room for it, Stopped, and OSError.
    """
    room = min(_MOST, free_bytes(folder) - _SPARED)
    if room < _LEAST:
        raise UserError(
            f"the disk of {folder} is too full to be measured",
            found=f"{free_bytes(folder) / 1e6:.0f} MB free",
            wanted=f"{(_LEAST + _SPARED) / 1e6:.0f} MB",
            fix="make room, name another place with --run.cache, or say --disk-gb-per-s X",
        )
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        size, write_s = _write(file.fileno(), room, limit_s / 2, stop)
        if hasattr(os, "posix_fadvise"):  # macOS has none and may read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        num_read, read_s = _read(file.fileno(), size, limit_s / 2, stop)
    return size / write_s / 1e9, num_read / read_s / 1e9, size / 1e9


def _write(descriptor: int, room: int, limit_s: float, stop: threading.Event) -> tuple[int, float]:
    """Return bytes and seconds; the bytes differ, since some disks compress."""
    generator, size, seconds = np.random.default_rng(0), 0, 0.0
    while size + _BLOCK <= room and (size < _LEAST or seconds < limit_s):
        raise_if_stopped(stop, "the disk was being measured; its file is gone")
        block = memoryview(generator.bytes(_BLOCK))
        began = time.perf_counter()
        while block:
            block = block[os.write(descriptor, block) :]
        if size % _FLUSHED == 0:
            os.fdatasync(descriptor)
        seconds += time.perf_counter() - began
        size += _BLOCK
    began = time.perf_counter()
    os.fsync(descriptor)
    return size, seconds + time.perf_counter() - began


def _read(descriptor: int, size: int, limit_s: float, stop: threading.Event) -> tuple[int, float]:
    began, done, buffer = time.perf_counter(), 0, bytearray(_BLOCK)
    while done < size and (done < _LEAST or time.perf_counter() - began < limit_s):
        raise_if_stopped(stop, "the disk was being measured; its file is gone")
        done += os.preadv(descriptor, [buffer], done)
    return done, time.perf_counter() - began
