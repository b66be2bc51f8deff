"""Foreign weights and ONNX networks: pickles that run, zips that swell, weights that lie."""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import world
from harness import Case
from onnx import helper, numpy_helper

_HUGE = 1 << 40
_TRACE = "trace-of-code-that-ran"  # made in the working folder by a pickle that is run


class _Touch:
    """Unpickling this makes a file."""

    def __reduce__(self) -> tuple:
        return os.mknod, (_TRACE,)


class _Shell:
    """Unpickling this starts a program."""

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {_TRACE}",)


class _Import:
    """Unpickling this runs text."""

    def __reduce__(self) -> tuple:
        return eval, (f"open({_TRACE!r}, 'w')",)


def _state() -> dict[str, torch.Tensor]:
    return {"a": torch.ones(2)}


def _repack(path: Path, change: Callable[[str, bytes], bytes], method: int = 0) -> None:
    """Write a zip file of torch's anew, entry by entry."""
    with zipfile.ZipFile(path) as old:
        entries = {name: change(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in entries.items():
            new.writestr(name, data)


def _packed(path: Path) -> None:
    """100 MB of zeros as a weight, in 100 kB."""
    torch.save({"a": torch.zeros(25_000_000)}, path)
    _repack(path, lambda name, data: data, zipfile.ZIP_DEFLATED)


def _long_list(path: Path, opcode: bytes) -> None:
    """data.pkl of three million objects."""
    torch.save(_state(), path)
    flood = b"\x80\x02" + opcode * 3_000_000 + b"."
    _repack(path, lambda name, data: flood if name.endswith("data.pkl") else data)


def _packed_list(path: Path) -> None:
    """data.pkl of 50 million objects in 50 kB."""
    torch.save(_state(), path)
    flood = b"\x80\x02" + b"]" * 50_000_000 + b"."
    change = partial(_replaced, end="data.pkl", data=flood)
    _repack(path, change, zipfile.ZIP_DEFLATED)


def _replaced(name: str, old: bytes, end: str, data: bytes) -> bytes:
    return data if name.endswith(end) else old


def _repeated(path: Path) -> None:
    """A listing whose thousand entries are one place of 1 MB."""
    torch.save({"a": torch.zeros(250_000)}, path)
    data = path.read_bytes()
    end = data.rindex(b"PK\5\6")
    listing = data[data.index(b"PK\1\2") : data.index(b"PK\6\6")]
    entry = _first_weight(listing)
    path.write_bytes(data[:end] + entry * 1000 + _end(1000, 1000 * len(entry), end))


def _first_weight(listing: bytes) -> bytes:
    """The entry of the first weight in a zip file's listing."""
    while True:
        size = 46 + sum(struct.unpack_from("<3H", listing, 28))
        if b"/data/0" in listing[:size]:
            return listing[:size]
        listing = listing[size:]


def _end(count: int, size: int, place: int) -> bytes:
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, place, 0)


def _many_entries(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for i in range(60_000):
            file.writestr(f"x/data/{i}", b"")


def _zip_of(data: bytes) -> Callable[[Path], object]:
    """torch's zip file with another data.pkl."""

    def make(path: Path) -> None:
        torch.save(_state(), path)
        _repack(path, partial(_replaced, end="data.pkl", data=data))

    return make


def _storage(numel: int) -> bytes:
    """A pickle of the older format whose one storage states so many numbers."""
    buffer = io.BytesIO()
    torch.save(_state(), buffer, _use_new_zipfile_serialization=False)
    before, after = buffer.getvalue().split(b"cpuq\x06K\x02")
    return before + b"cpuq\x06\x8a\x08" + struct.pack("<q", numel) + after


def _write(data: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data())


_SAYS = "cannot be read as weights|holds no state dict|does not fit"
_WEIGHTS: dict[str, Callable[[Path], object]] = {
    "a pickle that makes a file": lambda path: torch.save({"a": _Touch()}, path),
    "a pickle that starts a program": lambda path: torch.save({"a": _Shell()}, path),
    "a pickle that runs text": lambda path: torch.save({"a": _Import()}, path),
    "a bare pickle that makes a file": _write(lambda: pickle.dumps(_Touch(), 2)),
    "a bare pickle of protocol 5": _write(lambda: pickle.dumps(_Shell(), 5)),
    "an older file that starts a program": lambda path: torch.save(
        {"a": _Shell()}, path, _use_new_zipfile_serialization=False
    ),
    "a zip file that holds 100 MB": _packed,
    "a list of 50 million objects in 50 kB": _packed_list,
    "a list of three million lists": partial(_long_list, opcode=b"]"),
    "a list of three million sets": partial(_long_list, opcode=b"\x8f"),
    "an older file of three million lists": _write(lambda: b"\x80\x02" + b"]" * 3_000_000 + b"."),
    "an older storage of 2^40 numbers": _write(lambda: _storage(_HUGE)),
    "an older storage of 2^62 numbers": _write(lambda: _storage(1 << 62)),
    "one megabyte a thousand times": _repeated,
    "a listing of 60,000 entries": _many_entries,
    "a zip file that is cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "a zip file with an end of nothing": lambda path: path.write_bytes(
        path.read_bytes()[:-42] + _end(3, 1 << 30, 1 << 30)
    ),
    "a zip file with a 64-bit end of nothing": lambda path: path.write_bytes(
        path.read_bytes()[:-42] + struct.pack("<4sLQL", b"PK\6\7", 0, 1 << 62, 1) + _end(3, 9, 9)
    ),
    "250,000 lists": _zip_of(b"\x80\x02" + b"](" * 125_000 + b"."),
    "250,000 sets": _zip_of(b"\x80\x02" + b"\x8f" * 250_000 + b"."),
    "a tensor by the name of a number": lambda path: torch.save({1: torch.ones(1)}, path),
    "a sparse tensor": lambda path: torch.save(_with(torch.eye(4).to_sparse()), path),
    "a tensor without values": lambda path: torch.save(_with(torch.ones(4, device="meta")), path),
    "complex numbers": lambda path: torch.save(_with(torch.ones(4, dtype=torch.cfloat)), path),
    "one number seen as 10^12": lambda path: torch.save(_with(torch.ones(1).expand(10**12)), path),
    "a list": lambda path: torch.save([torch.ones(1)], path),
    "a tar file": lambda path: path.write_bytes(b"a".ljust(100, b"\0") + b"\0" * 10_000),
}


def _with(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"segmentation_head.bias": tensor}


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


# ONNX


def _point(location: str, offset: Any = 0, length: Any = 24) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        w = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")
        world.point_to(w, location, offset, length)
        world.make_onnx(folder / "network.onnx", w=w)

    return make


def _external() -> Iterator[Case]:
    places = {
        "an absolute path": "/etc/passwd",
        "a path upwards": "../secret.bin",
        "a path up and down": "voc/../../secret.bin",
        "a path of Windows": "C:\\secret.bin",
        "a share of Windows": "\\\\server\\secret.bin",
        "a device": "/dev/zero",
        "a zero byte": "w.bin\0",
        "nothing": "",
        "a folder": "voc",
        "10,000 letters": "w" * 10_000,
        "300 letters": "w" * 300,
        "an address": "http://localhost/w.bin",
    }
    says = "place that is refused|a name of"
    for name, place in places.items():
        for what, read in (("", world.teach_with_onnx()), (" (identity)", world.identify_onnx)):
            title = f"external data at {name}{what}"
            yield Case(
                name=title,
                make=_point(place),
                read=read,
                says=f"{says}|not an ONNX",
            )
    spans = {
        "an offset of 2^64-1": (2**64 - 1, 24),
        "an offset below 0": (-24, 24),
        "an offset of text": ("x", 24),
        "an offset of 5,000 digits": ("9" * 5000, 24),
        "a length of 2^64-1": (0, 2**64 - 1),
        "a length below 0": (0, -1),
        "a length that is not that of the shape": (0, 20),
        "a sum that overflows": (2**63, 2**63),
    }
    for name, (offset, length) in spans.items():
        says = "too short|another size|a name of|not an ONNX"
        make = _point("w.bin", offset, length)
        yield Case(
            name=f"external data with {name}", make=make, read=world.teach_with_onnx(), says=says
        )

    def through_a_folder(folder: Path) -> None:
        (folder / "linked").symlink_to("/etc")
        _point("linked/passwd")(folder)

    read = world.teach_with_onnx()
    yield Case(
        name="external data behind a linked folder", make=through_a_folder, read=read, says="a link"
    )

    def terabyte(folder: Path) -> None:
        world.sparse(folder / "w.bin", _HUGE)

    for read in (world.identify_onnx, world.teach_with_onnx()):
        yield Case(
            name=f"external data of 1 TB ({read.__name__})",
            make=terabyte,
            read=read,
            says="more than",
        )


def _weight(**fields: Any) -> Callable[[Path], object]:
    """The network with a weight whose fields do not agree."""

    def make(folder: Path) -> None:
        w = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, **fields)
        world.make_onnx(folder / "plain.onnx", w=w)

    return make


def _message(number: int, data: bytes) -> bytes:
    """A field of protobuf that holds bytes."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def _model(graph: bytes) -> bytes:
    return b"\x08\x08" + _message(7, graph)


def _nested(levels: int) -> bytes:
    """A graph in a node's attribute in a graph, and so on."""
    graph = b""
    for _ in range(levels):
        graph = _message(1, _message(5, _message(6, graph)))
    return graph


_FILES: dict[str, Callable[[Path], object]] = {
    "a shape of 2^40": _weight(dims=[_HUGE], raw_data=bytes(24)),
    "a shape of 2^40 and no values": _weight(dims=[_HUGE]),
    "a shape that overflows": _weight(dims=[2**62, 2**62], raw_data=bytes(24)),
    "a negative shape": _weight(dims=[-2, -3, 1, 1], raw_data=bytes(24)),
    "a shape of 10,000 dimensions": _weight(dims=[1] * 10_000, raw_data=bytes(4)),
    "too few values": _weight(dims=[2, 3, 1, 1], raw_data=bytes(20)),
    "too many values": _weight(dims=[2, 3, 1, 1], raw_data=bytes(28)),
    "numbers too few": _weight(dims=[2**20], float_data=[1.0]),
}
_BYTES: dict[str, Callable[[], bytes]] = {
    "a million nodes": lambda: _model(_message(1, b"") * 1_000_000),
    "a million inputs": lambda: _model(_message(11, b"") * 1_000_000),
    "a million dimensions of an input": lambda: _model(
        _message(11, _message(2, _message(1, _message(2, _message(1, b"") * 1_000_000))))
    ),
    "a million weights": lambda: _model(_message(5, b"") * 1_000_000),
    "a million functions": lambda: _model(b"") + _message(25, b"") * 1_000_000,
    "a million training graphs": lambda: _model(b"") + _message(20, b"") * 1_000_000,
    "graphs nested 1,000 deep": lambda: _model(_nested(1000)),
    "a length of 2^60": lambda: b"\x3a" + _varint(1 << 60),
    "a number without end": lambda: b"\x08" + b"\xff" * 100,
    "zeros": lambda: bytes(1_000_000),
    "text": lambda: b"not a network",
    "nothing": lambda: b"",
    "no nodes": lambda: _model(b""),
}
_ONNX_SAYS = "not an ONNX file|weights .* (are none|have another size)|cannot load|more than"


def _networks() -> Iterator[Case]:
    read = world.teach_with_onnx("plain.onnx")
    for name, make in _FILES.items():
        yield Case(name=f"{name} in an ONNX weight", make=make, read=read, says=_ONNX_SAYS)
    for name, data in _BYTES.items():

        def make(folder: Path, data: Callable[[], bytes] = data) -> None:
            (folder / "plain.onnx").write_bytes(data())

        yield Case(name=f"{name} as an ONNX file", make=make, read=read, says=_ONNX_SAYS)

    def sparse(folder: Path) -> None:
        w = onnx.TensorProto(
            name="w", data_type=onnx.TensorProto.FLOAT, dims=[1], raw_data=bytes(4)
        )
        i = onnx.TensorProto(
            name="i", data_type=onnx.TensorProto.INT64, dims=[1], raw_data=bytes(8)
        )
        constant = helper.make_node("Constant", [], ["c"])
        sparse = onnx.SparseTensorProto(values=w, indices=i, dims=[_HUGE])
        constant.attribute.append(helper.make_attribute("sparse_value", sparse))
        model = onnx.load(str(folder / "plain.onnx"))
        model.graph.node.insert(0, constant)
        onnx.save(model, str(folder / "plain.onnx"))

    yield Case(name="a sparse weight of 2^40", make=sparse, read=read, says="sparse weights")

    def large(folder: Path) -> None:
        world.sparse(folder / "plain.onnx", 3 << 30, (folder / "plain.onnx").read_bytes())

    yield Case(name="3 GB as an ONNX file", make=large, read=read, says="not an ONNX file")

    def zeros(folder: Path) -> None:
        world.sparse(folder / "plain.onnx", (1 << 31) - 1, b"\x3a" + _varint((1 << 31) - 7))

    yield Case(name="a graph of 2 GB of zeros", make=zeros, read=read, says="not an ONNX file")


CASES = (*_foreign(), *_external(), *_networks())
