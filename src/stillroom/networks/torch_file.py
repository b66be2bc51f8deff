"""Reads foreign torch files, having looked at what they would make torch do.

torch's restricted unpickler makes tensors and plain containers only, but as many as the file says,
and torch's zip reader unpacks whatever an entry states. So the list of tensors is short, entries
are stored as they are, and together they are no larger than the file.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stillroom.errors import DamageError
from stillroom.jsonfile import open_regular

_MAX_PICKLE_BYTES = 1 << 18  # 2,500 tensors; an opcode is a byte, takes 3 us and makes 224 bytes
_MAX_READS = 1 << 17  # of the older format, whose opcodes are read one by one: 60 a tensor
_MAX_LISTING_BYTES = 1 << 21  # 56 an entry
_FIX = "save the state dict alone, or as safetensors"
_END = struct.Struct("<4s6xHLLH")  # entries, size and place of the listing, length of a comment
_LOCATOR = struct.Struct("<4s4xQ4x")  # place of the 64-bit end
_END_64 = struct.Struct("<4s28xQQQ")
_ENTRY = struct.Struct("<4s4xHH8xLLHHH12x")  # flags, method, sizes, lengths of name, extra, comment


def load_torch(path: Path, max_bytes: int) -> Any:
    """Return what a torch file holds, on the CPU, with `weights_only`.

    Raises DamageError where it is larger than `max_bytes` or would become larger than it is, and
    whatever torch raises of the rest.
    """
    with open_regular(path, links=True) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise DamageError(f"{path} is too large", found=f"{size} bytes", wanted=f"{max_bytes}")
        is_zip = file.read(4) == b"PK\3\4"
        if is_zip and (problem := _zip_problem(file, size)):
            raise DamageError(f"{path} is no zip file as torch writes it: {problem}")
        file.seek(0)
        source: Any = file if is_zip else _Counted(file)
        return torch.load(source, map_location="cpu", weights_only=True)


class _Counted:
    """A file that may be read only so many times: storages take few reads, opcodes one each."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, _MAX_READS
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self._count()
        return self._file.read(size)

    def readline(self) -> bytes:
        self._count()
        return self._file.readline(1 << 12)

    def readinto(self, buffer: Any) -> int:
        self._count()
        return self._file.readinto(buffer)  # pyright: ignore[reportAttributeAccessIssue]

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise DamageError(f"a torch file of too many objects: {_FIX}")


def _zip_problem(file: BinaryIO, size: int) -> str | None:
    """Say why a zip file is refused, or None."""
    try:
        total = 0
        for name, stored, unpacked in _entries(file, size):
            total += unpacked
            if not stored:
                return f"{name!r:.80} is packed"
            if name.lower().endswith(b".pkl") and unpacked > _MAX_PICKLE_BYTES:
                return f"{name!r:.80} has more than {_MAX_PICKLE_BYTES} bytes: {_FIX}"
            if total > size:
                return f"entries of {total} bytes in a file of {size}"
    except (struct.error, ValueError) as error:
        return str(error)
    return None


def _entries(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bool, int]]:
    """Yield name, whether it is stored as it is, and size of every entry, where torch finds them.

    Raises ValueError or struct.error where the end of the file is not that of a zip file.
    """
    signature, count, length, place, comment = _END.unpack(_at(file, size - 22, 22))
    if signature != b"PK\5\6" or comment:
        raise ValueError("no end of a zip file")
    locator, end = _LOCATOR.unpack(_at(file, size - 42, 20))
    if locator == b"PK\6\7":  # always written by torch, and preferred by it
        signature, count, length, place = _END_64.unpack(_at(file, end, 56))
        if signature != b"PK\6\6":
            raise ValueError("no 64-bit end of a zip file")
    if length > _MAX_LISTING_BYTES or place + length > size:
        raise ValueError(f"a listing of {length} bytes at {place}")
    listing, at = _at(file, place, length), 0
    for _ in range(count):
        signature, flags, method, packed, unpacked, *lengths = _ENTRY.unpack_from(listing, at)
        if signature != b"PK\1\2":
            raise ValueError(f"no entry at byte {at} of the listing")
        name = listing[at + _ENTRY.size : at + _ENTRY.size + lengths[0]]
        yield name, method == 0 and not flags & 1 and packed == unpacked, unpacked
        at += _ENTRY.size + sum(lengths)


def _at(file: BinaryIO, place: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, place) if 0 <= place < 1 << 62 else b""
