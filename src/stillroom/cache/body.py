"""What a body is: the way the rows of one shard lie in files.

`shard.json`, the commit and the reader are the same for all bodies. A second body is one module
with this interface, and one line in `folder.BODIES`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from stillroom.jsonfile import Count, Crc32c, Declared, Sha256
from stillroom.types import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One stored array of a target: `name` is `<target>.<part>`, `shape` that of one row."""

    name: str
    dtype: str  # numpy's name; little-endian on disk
    shape: tuple[int, ...]

    @property
    def stored(self) -> np.dtype:
        """The dtype with the byte order of the disk."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def num_bytes(self) -> int:
        """Size of one decoded row in bytes."""
        return math.prod(self.shape) * self.stored.itemsize


class Spans(Declared, frozen=True):
    """Where the frames of one part lie in their file, per row, and their crc32c."""

    offset: list[Count]
    size: list[Count]
    crc32c: list[Crc32c]


class StoredFile(Declared, frozen=True):
    """Size in bytes and sha256 of one file of a shard."""

    size: Count
    sha256: Sha256


@runtime_checkable
class BodyWriter(Protocol):
    """Appends frames in row order; within a row in the order of the parts."""

    def append(self, row: Row, name: str, frame: bytes, crc: int) -> int:
        """Append the frame of one part and return its offset in the part's file."""
        ...

    def finish(self) -> dict[str, StoredFile]:
        """Complete and close all files; return them per path relative to the folder."""
        ...

    def abort(self) -> None:
        """Close all files."""
        ...


@runtime_checkable
class Body(Protocol):
    """Knows the files of a shard from ids alone."""

    suffix: str  # of the folder: `.zarr`, `.wds`

    def create(self, folder: Path, parts: tuple[Part, ...], num_rows: int) -> BodyWriter:
        """Start a body in an empty folder."""
        ...

    def file_of(self, part: Part) -> str:
        """The path of the file that holds a part's frames, relative to the folder."""
        ...

    def files(self, parts: tuple[Part, ...]) -> frozenset[str]:
        """The paths of all files but `shard.json`."""
        ...
