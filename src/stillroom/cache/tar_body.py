"""The second body: one WebDataset tar of all rows.

A row is a sample, a part is a member, and its payload is the frame that the Zarr body has too. tar
has no checksum of payloads, and one that was cut between members ends as if it were whole: our
reader goes by the offsets of `shard.json` and parses no header. Layout: docs/format.md, section 3.
"""

import tarfile
from pathlib import Path

from stillroom.cache.body import BodyWriter, Part, StoredFile
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


class _TarWriter:
    def __init__(self, path: Path) -> None:
        self._file = HashedFile(path)
        reach("body-started")

    def append(self, row: Row, name: str, frame: bytes, crc: int) -> int:
        self._file.write(_header(row, name, len(frame)))
        offset = self._file.write_frame(frame)
        self._file.write(bytes(_padding(len(frame))))
        return offset

    def finish(self) -> dict[str, StoredFile]:
        self._file.write(_END)
        self._file.close()
        return {_FILE: StoredFile(size=self._file.size, sha256=self._file.sha256)}

    def abort(self) -> None:
        self._file.close()


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
