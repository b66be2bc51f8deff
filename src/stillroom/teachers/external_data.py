"""Which files beside an ONNX file hold weights of it, found without the onnx package.

Stage 2 recognises a teacher by the sha256 of all its files and imports no onnx, so the places are
read from protobuf's wire format: tag, then a number or a length and so many bytes.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from stillroom.errors import UserError

# message -> number of a field -> the message in it: every way to a tensor in onnx.proto
_WAYS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto


def external_files(path: Path) -> dict[str, Path]:
    """Return the files that hold an ONNX file's external data, by their names in the graph.

    Raises UserError for a place that is absolute, has `..`, passes a link or does not exist, and
    where `path` is no ONNX file.
    """
    try:
        places = set(_places(memoryview(path.read_bytes())))
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is not an ONNX file", found=str(error)) from None
    return {place: file_inside(path.parent, place) for place in sorted(places)}


def file_inside(folder: Path, place: str) -> Path:
    """Return the file of a place named in a graph, having refused all that could lead elsewhere."""
    posix, windows = PurePosixPath(place), PureWindowsPath(place)
    file = folder / posix
    if not place or "\0" in place or posix.is_absolute() or windows.drive or "\\" in place:
        trouble = "no relative path"
    elif ".." in posix.parts:
        trouble = "a path with .."
    elif any((folder / part).is_symlink() for part in (posix, *posix.parents)[:-1]):
        trouble = "a link"
    elif not file.is_file():
        trouble = "no such file"
    else:
        return file
    raise UserError(
        "the ONNX graph keeps weights in a place that is refused",
        found=f"{place!r}: {trouble}",
        wanted=f"a plain file in {folder}",
        fix="save the network again with its weights in a file beside it; copy links as files",
    )


def _places(model: memoryview) -> Iterator[str]:
    """Yield the place of every external tensor; ValueError or IndexError where this is no model."""
    waiting, has_graph = [("model", model)], False
    while waiting:
        kind, message = waiting.pop()
        has_graph |= kind == "graph"
        if kind == "tensor":
            yield from _place(message)
            continue
        ways = _WAYS[kind]
        for number, value in _fields(message):
            if number in ways and isinstance(value, memoryview):
                waiting.append((ways[number], value))
    if not has_graph:
        raise ValueError("no graph in it")


def _place(tensor: memoryview) -> Iterator[str]:
    """Yield the location of a tensor that is external; empty where it names none."""
    location, is_external = "", False
    for number, value in _fields(tensor):
        if number == _DATA_LOCATION:
            is_external = value == _EXTERNAL
        elif number == _EXTERNAL_DATA and isinstance(value, memoryview):
            entry = dict(_fields(value))
            if _text(entry.get(_KEY)) == "location":
                location = _text(entry.get(_VALUE))
    if is_external:
        yield location


def _text(value: int | memoryview | None) -> str:
    return bytes(value).decode() if isinstance(value, memoryview) else ""


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (number, value) of every field: bytes as a view, numbers as they are."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        else:
            size = {1: 8, 5: 4}.get(wire, -1)
        if size < 0 or at + size > len(message):
            raise ValueError(f"no protobuf at byte {at}")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number at a place, seven bits a byte, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError(f"no protobuf at byte {at}")
