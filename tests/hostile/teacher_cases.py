"""Foreign weights and ONNX networks: pickles that run, places outside the folder, broken files."""

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
import world
from harness import Case
from onnx import numpy_helper

_TRACE = "trace-of-code-that-ran"  # made in the working folder by a pickle that is run


class _Touch:
    """Unpickling this makes a file."""

    def __reduce__(self) -> tuple:
        return os.mknod, (_TRACE,)


class _Shell:
    """Unpickling this starts a program."""

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {_TRACE}",)


_SAYS = "cannot be read as weights|holds no state dict"
_WEIGHTS: dict[str, Callable[[Path], object]] = {
    "a pickle that makes a file": lambda path: torch.save({"a": _Touch()}, path),
    "a pickle that starts a program": lambda path: torch.save({"a": _Shell()}, path),
    "a bare pickle that makes a file": lambda path: path.write_bytes(pickle.dumps(_Touch(), 2)),
    "a bare pickle of protocol 5": lambda path: path.write_bytes(pickle.dumps(_Shell(), 5)),
    "an older file that starts a program": lambda path: torch.save(
        {"a": _Shell()}, path, _use_new_zipfile_serialization=False
    ),
    "a zip file that is cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "a tensor by the name of a number": lambda path: torch.save({1: torch.ones(1)}, path),
    "a list": lambda path: torch.save([torch.ones(1)], path),
}


def _foreign() -> Iterator[Case]:
    for name, spoil in _WEIGHTS.items():

        def make(folder: Path, spoil: Callable[[Path], object] = spoil) -> None:
            spoil(folder / "weights.pt")

        yield Case(name=f"{name} as weights", make=make, read=load_here, says=_SAYS)


def load_here(folder: Path) -> object:
    """Load the weights in their own folder; code that runs leaves its trace there."""
    os.chdir(folder)
    try:
        return world.load_foreign(folder)
    finally:
        if Path(_TRACE).exists():
            raise AssertionError("code of the file was run")


def _point(location: str, offset: object = 0, length: object = 24) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        w = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")
        world.point_to(w, location, offset, length)
        world.make_onnx(folder / "network.onnx", w=w)

    return make


def _through_a_folder(folder: Path) -> None:
    (folder / "linked").symlink_to("/etc")
    _point("linked/passwd")(folder)


_PLACES = {
    "an absolute path": "/etc/passwd",
    "a path up and down": "voc/../../secret.bin",
    "a path of Windows": "C:\\secret.bin",
    "a device": "/dev/zero",
    "nothing": "",
}
_SPANS = {
    "an offset past the end": (2**62, 24),
    "an offset below 0": (-24, 24),
    "a length past the end": (0, 2**30),
    "a length that is not that of the shape": (0, 20),
}


def _external() -> Iterator[Case]:
    build = world.teach_with_onnx()
    makes = {name: _point(place) for name, place in _PLACES.items()}
    for name, make in (makes | {"a linked folder": _through_a_folder}).items():
        for what, read in (("", build), (" (identity)", world.identify_onnx)):
            title = f"external data at {name}{what}"
            yield Case(name=title, make=make, read=read, says="place that is refused")
    for name, (offset, length) in _SPANS.items():
        make, says = _point("w.bin", offset, length), "cannot be read|not of their shape"
        yield Case(name=f"external data with {name}", make=make, read=build, says=says)


def _weight(dims: list[int], values: bytes) -> Callable[[Path], object]:
    """The network with a weight whose fields do not agree."""
    w = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=dims, raw_data=values)
    return lambda folder: world.make_onnx(folder / "plain.onnx", w=w)


def _cut(folder: Path) -> None:
    path = folder / "plain.onnx"
    path.write_bytes(path.read_bytes()[:-20])


def _networks() -> Iterator[Case]:
    makes = {
        "a weight of 2^40 values": _weight([1 << 40], bytes(24)),
        "a weight of too few values": _weight([2, 3, 1, 1], bytes(20)),
        "text": lambda folder: (folder / "plain.onnx").write_text("not a network"),
        "nothing": lambda folder: (folder / "plain.onnx").write_bytes(b""),
        "half a network": _cut,
    }
    says = "not an ONNX file|not of their shape|cannot load"
    for name, make in makes.items():
        read = world.teach_with_onnx("plain.onnx")
        yield Case(name=f"{name} as an ONNX file", make=make, read=read, says=says)


CASES = (*_foreign(), *_external(), *_networks())
