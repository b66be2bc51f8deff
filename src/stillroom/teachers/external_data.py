"""Which files beside an ONNX file hold weights of it, found without the onnx package.

Stage 2 recognises a teacher by the sha256 of all its files and imports no onnx, so the places are
read from protobuf's wire format: tag, then a number or a length and so many bytes. Weights are
passed over and the number of fields is limited, so that this is also how a file is looked at before
onnx parses it: a message of two bytes becomes an object of hundreds.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from stillroom.errors import UserError
from stillroom.jsonfile import open_regular

# message -> number of a field -> the message in it: every message of onnx.proto that holds others
_WAYS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {
        1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "note", 15: "sparse",
    },
    "function": {7: "node", 11: "attribute", 12: "value"},
    "node": {5: "attribute", 10: "place"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 14: "type", 15: "type", 22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
    "note": {},
    "value": {2: "type"},
    "type": {1: "shaped", 4: "list", 5: "map", 8: "shaped", 9: "list"},
    "shaped": {2: "shape"},
    "list": {1: "type"},
    "map": {2: "type"},
    "shape": {},
    "place": {2: "sharding"},
    "sharding": {4: "sharded"},
    "sharded": {},
}  # fmt: skip
_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_MAX_BYTES = (1 << 31) - 1  # protobuf's own limit
_MAX_EXTERNAL_BYTES = 1 << 33
_MAX_FIELDS = 1 << 18  # a detector of 600 nodes and weights has 7,000
_MAX_PLACE_BYTES = 255  # of the name of a file of external data
_BLOCK_BYTES = 1 << 16

Span = tuple[int, int]  # where a field's bytes begin and end in the file


def external_files(path: Path) -> dict[str, Path]:
    """Return the files that hold an ONNX file's external data, by their names in the graph.

    Raises UserError for a place that is absolute, has `..`, passes a link or does not exist, and
    where `path` is no ONNX file.
    """
    with open_regular(path, links=True) as file:
        try:
            places = set(_places(_Blocks(file)))
        except (ValueError, IndexError) as error:
            raise UserError(f"{path} is not an ONNX file", found=str(error)) from None
    return {place: file_inside(path.parent, place) for place in sorted(places)}


def file_inside(folder: Path, place: str) -> Path:
    """Return the file of a place named in a graph, having refused all that could lead elsewhere."""
    posix, windows = PurePosixPath(place), PureWindowsPath(place)
    file = folder / posix
    is_short = 0 < len(place.encode()) <= _MAX_PLACE_BYTES
    if not is_short or "\0" in place or posix.is_absolute() or windows.drive or "\\" in place:
        trouble = "no relative path"
    elif ".." in posix.parts:
        trouble = "a path with .."
    elif any((folder / part).is_symlink() for part in (posix, *posix.parents)[:-1]):
        trouble = "a link"
    elif not file.is_file():
        trouble = "no such file"
    elif file.stat().st_size > _MAX_EXTERNAL_BYTES:
        trouble = f"{file.stat().st_size} bytes, more than {_MAX_EXTERNAL_BYTES}"
    else:
        return file
    raise UserError(
        "the ONNX graph keeps weights in a place that is refused",
        found=f"{place!r}: {trouble}",
        wanted=f"a plain file in {folder}",
        fix="save the network again with its weights in a file beside it; copy links as files",
    )


class _Blocks:
    """The bytes of a file by their places; a block is kept, the file is not."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        self.size = os.fstat(self._descriptor).st_size
        if self.size > _MAX_BYTES:
            raise ValueError(f"{self.size} bytes, more than {_MAX_BYTES}")
        self._begin, self._block = 0, b""

    def __getitem__(self, at: int) -> int:
        place = at - self._begin
        if not 0 <= place < len(self._block):
            self._begin, place = at, 0
            self._block = os.pread(self._descriptor, _BLOCK_BYTES, at)
        return self._block[place]

    def text(self, span: Span) -> str:
        """Return the text of a span; ValueError where it is none."""
        if span[1] - span[0] > 1 << 12:
            raise ValueError(f"a name of {span[1] - span[0]} bytes")
        return os.pread(self._descriptor, span[1] - span[0], span[0]).decode()


def _places(model: _Blocks) -> Iterator[str]:
    """Yield the place of every external tensor; ValueError or IndexError where this is no model."""
    waiting, has_graph, left = [("model", (0, model.size))], False, _MAX_FIELDS
    while waiting:
        kind, span = waiting.pop()
        has_graph |= kind == "graph"
        fields = list(_fields(model, span, left))
        left -= len(fields)
        if kind == "tensor":
            yield from _place(model, fields)
            continue
        ways = _WAYS[kind]
        waiting += [
            (ways[n], value) for n, value in fields if n in ways and isinstance(value, tuple)
        ]
    if not has_graph:
        raise ValueError("no graph in it")


def _place(model: _Blocks, tensor: list[tuple[int, int | Span]]) -> Iterator[str]:
    """Yield the location of a tensor that is external; empty where it names none."""
    location, is_external = "", False
    for number, value in tensor:
        if number == _DATA_LOCATION:
            is_external = value == _EXTERNAL
        elif number == _EXTERNAL_DATA and isinstance(value, tuple):
            entry = {n: v for n, v in _fields(model, value, 100) if isinstance(v, tuple)}
            if _KEY in entry and model.text(entry[_KEY]) == "location":
                location = model.text(entry[_VALUE]) if _VALUE in entry else ""
    if is_external:
        yield location


def _fields(model: _Blocks, message: Span, most: int) -> Iterator[tuple[int, int | Span]]:
    """Yield (number, value) of every field: where bytes lie, numbers as they are."""
    at, end = message
    for _ in range(most):
        if at >= end:
            return
        tag, at = _varint(model, at)
        wire = tag & 7
        if tag < 8:
            raise ValueError(f"no protobuf at byte {at}")
        if wire == 0:
            value, at = _varint(model, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(model, at)
        else:
            size = {1: 8, 5: 4}.get(wire, -1)
        if size < 0 or at + size > end:
            raise ValueError(f"no protobuf at byte {at}")
        yield tag >> 3, (at, at + size)
        at += size
    if at < end:
        raise ValueError(f"more than {_MAX_FIELDS} fields")


def _varint(model: _Blocks, at: int) -> tuple[int, int]:
    """Return the number at a place, seven bits a byte, and the place after it."""
    value = model[at]
    if value < 128:
        return value, at + 1
    value = 0
    for shift in range(0, 70, 7):
        byte = model[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError(f"no protobuf at byte {at}")
