"""The second body: one WebDataset tar of all rows.

A row is a sample, a part is a member, and its payload is the frame that the Zarr body has too. tar
has no checksum of payloads, and one that was cut between members ends as if it were whole: our
reader goes by the offsets of `shard.json` and parses no header. The scrub demands every byte that
is no frame. Layout: docs/format.md, section 3.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from stillroom.cache.body import BodyWriter, Part, Spans
from stillroom.cache.faults import reach
from stillroom.cache.frames import HashedFile
from stillroom.types import Row

_FILE = "rows.tar"
_BLOCK_BYTES = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK_BYTES)


class TarBody:
    """Files and spans of a WebDataset tar; see `stillroom.cache.body.Body`."""

    suffix = ".wds"

    def create(self, folder: Path, parts: tuple[Part, ...], num_rows: int) -> BodyWriter:
        """Open an empty tar."""
        return _TarWriter(folder / _FILE)

    def file_of(self, part: Part) -> str:
        """Every part lies in `rows.tar`."""
        return _FILE

    def files(self, parts: tuple[Part, ...]) -> frozenset[str]:
        """The tar alone."""
        return frozenset([_FILE])

    def check_spans(
        self, parts: tuple[Part, ...], spans: dict[str, Spans], sizes: dict[str, int]
    ) -> str | None:
        """Frames begin on blocks, in order, with room for a header; then comes the end."""
        end = 0
        for row, name, offset, size in _members(parts, spans):
            if offset % _BLOCK_BYTES or offset < end + _BLOCK_BYTES:
                return f"part {name}: row {row} begins at {offset}, not at a member after {end}"
            end = offset + size + _padding(size)
        end += len(_END)
        return None if end == sizes[_FILE] else f"members end at {end} of {sizes[_FILE]} bytes"

    def problems(
        self, folder: Path, parts: tuple[Part, ...], rows: tuple[Row, ...], spans: dict[str, Spans]
    ) -> list[str]:
        """Compare headers, padding and end with what the writer writes: nothing else may lie there.

        Regular files with plain names only, in order, and nothing between or after them.
        """
        problems, end, padding = [], 0, b""
        with (folder / _FILE).open("rb", buffering=0) as file:
            for i, name, offset, size in _members(parts, spans):
                wanted = padding + _header(rows[i], name, size)
                found = os.pread(file.fileno(), len(wanted), end)
                if end + len(wanted) != offset or found != wanted:
                    member = _member(rows[i], name)
                    problems.append(f"{_FILE}: bytes {end} to {offset} are no header of {member}")
                end, padding = offset + size, bytes(_padding(size))
            wanted = padding + _END
            if os.pread(file.fileno(), len(wanted) + 1, end) != wanted:
                problems.append(f"{_FILE}: from byte {end} on there is not the end of a tar")
        return problems


class _TarWriter:
    def __init__(self, path: Path) -> None:
        self._file = HashedFile(path)
        reach("body-started")

    def append(self, row: Row, name: str, frame: bytes, crc: int) -> int:
        self._file.write(_header(row, name, len(frame)))
        offset = self._file.write_frame(frame)
        self._file.write(bytes(_padding(len(frame))))
        return offset

    def finish(self) -> dict[str, tuple[int, str]]:
        self._file.write(_END)
        self._file.close()
        return {_FILE: (self._file.size, self._file.sha256)}

    def abort(self) -> None:
        self._file.close()


def _members(
    parts: tuple[Part, ...], spans: dict[str, Spans]
) -> Iterator[tuple[int, str, int, int]]:
    """Yield row, part, offset and size in bytes of every member, in the order of the tar."""
    for row in range(len(spans[parts[0].name].offset)):
        for part in parts:
            yield row, part.name, spans[part.name].offset[row], spans[part.name].size[row]


def _member(row: Row, part: str) -> str:
    """Return a member's name: the sample is the key, as in the picture tar, for a whole picture.

    `=r3=v1` marks a region and a view: no key that `pictures.keys.key_of` makes has `=r` or `=v`.
    """
    region = "" if row.region is None else f"=r{row.region}"
    view = "" if row.view.number == 0 else f"=v{row.view.number}"
    return f"{row.key}{region}{view}.{part}.zst"


def _header(row: Row, part: str, size: int) -> bytes:
    """Return the header of a regular file: times and owners 0, mode 0644, no user names."""
    member = tarfile.TarInfo(_member(row, part))
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> int:
    return -size % _BLOCK_BYTES
