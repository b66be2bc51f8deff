"""The one way a safetensors file is read; its library compares shapes, offsets and size."""

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import Tensor

from stillroom.errors import DamageError
from stillroom.jsonfile import open_regular


def map_tensors(path: Path, *, links: bool = False) -> dict[str, Tensor]:
    """Return a file's tensors, none of which is read before it is used; `links` as `open_regular`.

    Raises FileNotFoundError, and DamageError where it is no such file.
    """
    open_regular(path, links=links).close()
    return _tensors(lambda: safetensors.torch.load_file(path), path)


def parse_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file's content; `path` is for the message only."""
    return _tensors(lambda: safetensors.torch.load(data), path)


def _tensors(load: Callable[[], dict[str, Tensor]], path: Path) -> dict[str, Tensor]:
    try:
        return load()
    except Exception as error:  # safetensors and torch both refuse, each in its own way
        found = f"{type(error).__name__}: {error}"[:300]
        raise DamageError(f"{path} is no safetensors file", found=found) from None
