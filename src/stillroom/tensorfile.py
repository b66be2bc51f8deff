"""The one way a safetensors file is read: size and header are looked at before anything is made.

A header of a megabyte may name ten thousand tensors of any shape; safetensors itself compares
shapes, offsets and the file's size with one another, but takes headers of 100 MB.
"""

import os
from pathlib import Path

import safetensors.torch
from torch import Tensor

from stillroom.errors import DamageError
from stillroom.jsonfile import open_regular

_MAX_HEADER_BYTES = 1 << 20  # 8,000 tensors of 120 bytes each


def map_tensors(path: Path, max_bytes: int, *, links: bool = False) -> dict[str, Tensor]:
    """Return a file's tensors, none of which is read before it is used; `links` as `open_regular`.

    Raises FileNotFoundError, and DamageError where it is no such file or has more than `max_bytes`.
    """
    with open_regular(path, links=links) as file:
        size = os.fstat(file.fileno()).st_size
        _check_head(file.read(8), size, max_bytes, path)
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # safetensors and torch both refuse, each in its own way
        raise _damage(path, f"{type(error).__name__}: {error}") from None


def parse_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file's content; `path` is for the message only."""
    _check_head(data[:8], len(data), len(data), path)
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # as above
        raise _damage(path, f"{type(error).__name__}: {error}") from None


def _check_head(head: bytes, size: int, max_bytes: int, path: Path) -> None:
    if size > max_bytes:
        raise DamageError(f"{path} is too large", found=f"{size} bytes", wanted=f"{max_bytes}")
    header = int.from_bytes(head, "little")
    if len(head) < 8 or header > min(_MAX_HEADER_BYTES, size - 8):
        raise _damage(path, f"a header of {header} bytes in a file of {size}")


def _damage(path: Path, found: str) -> DamageError:
    return DamageError(f"{path} is no safetensors file", found=found[:300])
