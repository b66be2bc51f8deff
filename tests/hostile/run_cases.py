"""Runs and checkpoints whose checksums are right and whose content is an enemy's."""

import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import world
from harness import Case
from safetensors.torch import load_file, save_file

from stillroom.jsonfile import file_sha256

_HUGE = 10**12
_STEP = "run/checkpoints/step-000002"
_SMP = {
    "name": "smp",
    "arch": "unet",
    "encoder": "tu-mobilenetv2_035",
    "classes": 1,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "decoder_channels": None,
}
_NETWORKS: dict[str, Any] = {
    "of 10^9 parameters": world.UNET | {"width": 8192, "depth": 2},
    "of 10^12 parameters": world.UNET | {"width": 65_536, "depth": 3},
    "of width 10^12": world.UNET | {"width": _HUGE},
    "of depth 10^12": world.UNET | {"depth": _HUGE},
    "of depth 60,000": world.UNET | {"depth": 60_000},
    "of 10^12 classes": world.UNET | {"classes": _HUGE},
    "of width true": world.UNET | {"width": True},
    "of width 0.5": world.UNET | {"width": 0.5},
    "of a mean of 10^4000": world.UNET | {"mean": [10**4000, 0, 0]},
    "of no deviation": world.UNET | {"std": [0, 0, 0]},
    "of an unknown field": world.UNET | {"code": "import os"},
    "of an unknown name": world.UNET | {"name": "os.system"},
    "of a name that is a list": world.UNET | {"name": ["unet"]},
    "without a name": {"width": 4},
    "that is a list": [1],
    "that is null": None,
    "fetched from a hub": _SMP | {"encoder": "tu-hf-hub:enemy/network"},
    "fetched from a folder": _SMP | {"encoder": "tu-local-dir:/tmp/enemy"},
    "fetched from an address": _SMP | {"encoder": "http://localhost/network"},
    "of a path": _SMP | {"encoder": "../../etc/passwd"},
    "of 856 million parameters": _SMP | {"encoder": "tu-convnext_xxlarge"},
    "of an encoder that is not there": _SMP | {"encoder": "tu-nothing"},
    "of an architecture that is a dunder": _SMP | {"arch": "__class__"},
    "of decoder channels of 65,536": _SMP | {"decoder_channels": [65_536] * 5},
    "of 100,000 decoder channels": _SMP | {"decoder_channels": [1] * 100_000},
}
_ABOUTS: dict[str, tuple[str, Any]] = {
    "classes that are numbers": ("classes", [1, 2, 3]),
    "classes that are null": ("classes", None),
    "a geometry of 10^9": ("geometry", {"height": 10**9, "width": 16}),
    "a geometry that is a list": ("geometry", [16, 16]),
    "a batch of 10^12": ("batch", _HUGE),
    "a batch of text": ("batch", "4"),
    "pictures that are a list": ("pictures", []),
    "a path that is a number": ("pictures", {"path": 1}),
    "a sha256 of another file": ("weights_sha256", "0" * 64),
    "a sha256 that is a number": ("weights_sha256", 1),
}
_BAD = (
    "description|cannot be built|more parameters|no such|names no network|not possible|cannot build"
)


def _put(name: str, value: Any, body: Any) -> None:
    body[name] = value


def _runs() -> Iterator[Case]:
    for name, network in _NETWORKS.items():
        make = world.edit_student(partial(_put, "network", network))
        yield Case(name=f"a network {name}", make=make, read=world.teach_with_run, says=_BAD)
    for name, (member, value) in _ABOUTS.items():
        make = world.edit_student(partial(_put, member, value))
        says = "not what student.json names" if "sha256" in name else "malformed"
        yield Case(name=f"{name} in student.json", make=make, read=world.use_run, says=says)


def _header(tensors: Any, size: int | None = None) -> bytes:
    """The beginning of a safetensors file; `size` is stated instead of the header's own."""
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


def _tensor(shape: list[int], end: int, dtype: str = "F32", begin: int = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _two(end: int) -> dict[str, Any]:
    return {"a": _tensor([1], 4), "b": _tensor([1], end, begin=end - 4)}


_WEIGHTS: dict[str, Callable[[], bytes]] = {
    "a header of 8 EB": lambda: _header({}, 1 << 63),
    "a header of 2^64-1 bytes": lambda: _header({}, 2**64 - 1),
    "a header beyond the file": lambda: _header({}, 100),
    "a header of 90 MB": lambda: _header(b" " * 90_000_000),
    "a header nested 100,000 deep": lambda: _header(b'{"a":' * 100_000),
    "a header of a list": lambda: _header([]),
    "a header that is no JSON": lambda: _header(b"\xff\xff"),
    "a shape of 10^12": lambda: _header({"a": _tensor([_HUGE], 4)}) + bytes(4),
    "a shape that overflows": lambda: _header({"a": _tensor([2**33, 2**33], 0)}),
    "an empty shape of 2^63": lambda: _header({"a": _tensor([0, 2**63], 0)}),
    "a negative shape": lambda: _header({"a": _tensor([-1], 4)}) + bytes(4),
    "offsets of 2^64-1": lambda: _header({"a": _tensor([1], 2**64 - 1)}) + bytes(4),
    "offsets backwards": lambda: _header({"a": _tensor([1], 0, begin=4)}) + bytes(4),
    "a tensor over another": lambda: _header(_two(6)) + bytes(6),
    "a hole between tensors": lambda: _header(_two(100)) + bytes(100),
    "Python objects": lambda: _header({"a": _tensor([1], 8, dtype="O")}) + bytes(8),
    "a tensor twice": lambda: _header(b'{"a":%s,"a":%s}' % ((b'{"dtype":"F32"}',) * 2)),
    "100,000 tensors": lambda: _header({f"{i}": _tensor([0], 0) for i in range(100_000)}),
    "bytes after the end": lambda: _header({"a": _tensor([1], 4)}) + bytes(1000),
    "nothing": lambda: b"",
}


def _weights() -> Iterator[Case]:
    for name, data in _WEIGHTS.items():

        def make(folder: Path, data: Callable[[], bytes] = data) -> None:
            (folder / "run" / "student.safetensors").write_bytes(data())
            world.rehash(folder / "run")

        read = world.teach_with_run
        yield Case(name=f"{name} in weights", make=make, read=read, says="no safetensors file")

        def make(folder: Path, data: Callable[[], bytes] = data) -> None:
            (folder / "cache-zarr" / "codecs.safetensors").write_bytes(data())

        read, says = world.read_rows("zarr"), "no safetensors file|too large"
        name = f"{name} in codecs.safetensors"
        yield Case(name=name, make=make, read=read, says=says)

    def large(folder: Path) -> None:
        """A network that is not described, all of zeros: 1 GB that takes no room."""
        head = _header({"a": _tensor([1 << 28], 1 << 30)})
        world.sparse(folder / "run/student.safetensors", len(head) + (1 << 30), head)
        world.rehash(folder / "run")

    read = world.teach_with_run
    yield Case(name="a gigabyte of zeros as weights", make=large, read=read, says="too large")


def _spoil_state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return world.edit_file(f"{_STEP}/state.json", change)


def _spoil_tensors(
    file: str, change: Callable[[dict[str, torch.Tensor]], object]
) -> Callable[[Path], object]:
    """Change a checkpoint's tensors; state.json names the new file."""

    def make(folder: Path) -> None:
        path = folder / _STEP / f"{file}.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path)
        _spoil_state(lambda body: body["files"].update({path.name: file_sha256(path)}))(folder)

    return make


def _checkpoints() -> Iterator[Case]:
    states: dict[str, Callable[[dict[str, Any]], object]] = {
        "another step": lambda body: body.update(step=3),
        "a step of 10^12": lambda body: body.update(step=_HUGE),
        "a step of text": lambda body: body.update(step="2"),
        "a step of true": lambda body: body.update(step=True),
        "no step": lambda body: body.pop("step"),
        "no files": lambda body: body.pop("files"),
        "files that are a list": lambda body: body.update(files=[]),
        "a best of text": lambda body: body.update(best="x"),
        "a scaler that is a list": lambda body: body.update(scaler=[1]),
        "another format": lambda body: body.update(format="pickle"),
    }
    for name, change in states.items():
        make = _spoil_state(change)
        yield Case(name=f"{name} in state.json", make=make, read=world.resume, says="malformed")
    head = "segmentation_head.bias"
    models: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        "another shape": lambda tensors: tensors.update({head: torch.zeros(5)}),
        "a tensor too few": lambda tensors: tensors.pop(head),
        "a tensor too many": lambda tensors: tensors.update(more=torch.zeros(1)),
    }
    optimizers: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        "another shape": lambda tensors: tensors.update({"0.exp_avg": torch.zeros(5)}),
        "a field too few": lambda tensors: tensors.pop("0.exp_avg"),
        "a field too many": lambda tensors: tensors.update({"0.code": torch.zeros(1)}),
        "a parameter that is not there": lambda tensors: tensors.update(
            {"999.step": torch.zeros(1)}
        ),
        "a parameter without a number": lambda tensors: tensors.update({"x.step": torch.zeros(1)}),
        "a parameter of 10^20": lambda tensors: tensors.update(
            {"9" * 20 + ".step": torch.zeros(1)}
        ),
    }
    for file, changes in (("model", models), ("optimizer", optimizers)):
        for name, change in changes.items():
            make = _spoil_tensors(file, change)
            says = "not of this model|not the state of this"
            yield Case(name=f"{name} in the {file}", make=make, read=world.resume, says=says)

    def elsewhere(folder: Path) -> None:
        """Folders that are no checkpoints, and the only one gone."""
        (folder / _STEP).rename(folder / "run/checkpoints/step-../../x".replace("/", "-"))
        (folder / "run/checkpoints/step-99999999999999999999").mkdir()
        (folder / "run/checkpoints/step-abc").mkdir()

    says = "no checkpoint to resume from"
    yield Case(name="folders of other names", make=elsewhere, read=world.resume, says=says)


CASES = (*_runs(), *_weights(), *_checkpoints())
