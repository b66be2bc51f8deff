"""Rows as bytes: zstd frames that state their content size, crc32c, files that hash themselves.

Cost of a 13.1 MB float16 row: see `benchmarks/read_rows.py`.
"""

import hashlib
import os
import struct
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import zstd  # pyright: ignore[reportAttributeAccessIssue]

from stillroom.cache.faults import reach
from stillroom.errors import DamageError

_MAGIC = 0xFD2FB528


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
    frame = zstd.compress(value, level)
    assert content_size(frame[:18]) == value.nbytes
    return frame


def decode_frame(frame: np.ndarray, out: np.ndarray) -> None:
    """Decompress a uint8 frame into a contiguous array of exactly its size.

    Raises DamageError (the caller adds the place) on another stated size or an invalid frame.
    """
    stated = content_size(frame[:18].tobytes())
    if stated != out.nbytes:
        raise DamageError("wrong size", found=f"{stated} bytes", wanted=f"{out.nbytes} bytes")
    try:
        zstd.decompress(frame, out.reshape(-1).view(np.uint8))
    except (RuntimeError, ValueError) as error:
        raise DamageError(f"not a zstd frame ({error})") from None


def content_size(head: bytes) -> int | None:
    """Return the content size that a frame's head of 18 bytes states (RFC 8878, 3.1.1.1)."""
    if len(head) < 6 or struct.unpack_from("<I", head)[0] != _MAGIC:
        return None
    descriptor = head[4]
    is_single = bool(descriptor & 0x20)
    width = (int(is_single), 2, 4, 8)[descriptor >> 6]
    start = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    field = head[start : start + width]
    if width == 0 or len(field) < width:
        return None
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)


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
        if hasattr(
            os, "posix_fadvise"
        ):  # absent on macOS, where the read-back may be answered from memory
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
