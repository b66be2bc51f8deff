"""Rows as bytes: zstd frames, crc32c, files that hash themselves.

Cost of a 13.1 MB float16 row: see `benchmarks/loader.py`.
"""

import hashlib
import os
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import zstd  # pyright: ignore[reportAttributeAccessIssue]

from stillroom.cache.faults import reach
from stillroom.errors import DamageError


def crc32c(data: bytes | np.ndarray, before: int = 0) -> int:
    """Return the Castagnoli checksum of bytes or of a contiguous array, without copying it.

    `before` is the checksum of the bytes before these.
    """
    assert isinstance(data, bytes) or data.flags.c_contiguous
    return google_crc32c.extend(before, data)  # pyright: ignore[reportArgumentType]  (takes any buffer)


def is_finite(value: np.ndarray) -> bool:
    """Whether a contiguous float array has no NaN and no infinity (float16: 13 to 5 ms)."""
    if value.dtype != np.float16:
        return bool(np.isfinite(value).all())
    bits, block = value.reshape(-1).view(np.uint16), 1 << 19
    pieces = (bits[start : start + block] for start in range(0, bits.size, block))
    return all(bool(((piece & 0x7C00) != 0x7C00).all()) for piece in pieces)


def encode_frame(value: np.ndarray, level: int) -> bytes:
    """Compress a contiguous little-endian array into one frame that states its content size."""
    return zstd.compress(value, level)


def decode_frame(frame: np.ndarray, out: np.ndarray) -> None:
    """Decompress a uint8 frame into a contiguous array, past whose end nothing is written.

    Raises DamageError (the caller adds the place) on an invalid frame, or one that holds more.
    """
    try:
        zstd.decompress(frame, out.reshape(-1).view(np.uint8))
    except (RuntimeError, ValueError) as error:
        raise DamageError(f"not a zstd frame ({error})") from None


class HashedFile:
    """A new file that is written once from front to back; it knows its size and sha256."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._file = path.open("xb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`; an OSError (no space) leaves a file that is not to be used."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._sha256.update(data)
        self.size += len(data)

    def write_frame(self, frame: bytes) -> int:
        """Append a frame, between whose halves a test may kill; return its offset."""
        offset, view, half = self.size, memoryview(frame), len(frame) // 2
        self.write(view[:half])
        reach("frame-half-written")
        self.write(view[half:])
        return offset

    @property
    def sha256(self) -> str:
        """The sha256 of everything written so far."""
        return self._sha256.hexdigest()

    def close(self) -> None:
        """Close without flushing to disk."""
        self._file.close()


def sync_file(path: Path) -> None:
    """Make a file durable, and drop it from memory so that the next read comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):  # macOS has none and may read back from memory
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
