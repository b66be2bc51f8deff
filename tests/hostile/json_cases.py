"""JSON files of ours whose checksums are right, and whose members cannot be or lead elsewhere."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import world
from harness import Case

_HUGE = 10**12
_PATH, _PASSWORDS = "../../../etc/passwd", {"size": 1, "sha256": "0" * 64}


def _at(*path: Any) -> Callable[[Any], None]:
    """Put the last argument where the others lead."""

    def put(body: Any) -> None:
        *steps, last, value = path
        for step in steps:
            body = body[step]
        body[last] = value

    return put


_TARGET = ("targets", "mask")
_IDENTITY = {
    "a shape of 10^12": _at(*_TARGET, "shape", 0, _HUGE),
    "a shape of 2^28 values": _at(*_TARGET, "shape", [1 << 14, 1 << 14, 1]),
    "a stride of -1": _at(*_TARGET, "stride", -1),
    "10^12 rows": _at("pictures", "shards", 0, "rows", _HUGE),
    "2^64-1 views": _at("views", "count", 2**64 - 1),
    "a height of 10^4000": _at("geometry", "height", 10**4000),
    "a codec that is not ours": _at(*_TARGET, "codec", "pickle"),
    "a split that is a path": _at("pictures", "shards", 0, "split", _PATH),
    "a target that is a path": lambda body: body["targets"].update(
        {_PATH: body["targets"]["mask"]}
    ),
    "a member that we do not know": _at("url", "http://localhost/"),
}
_PART = ("parts", "mask.value")
_SHARD = {
    "an offset of 10^12": _at(*_PART, "offset", 1, _HUGE),
    "a size of 10^12": _at(*_PART, "size", 1, _HUGE),
    "400,000 rows": _at(*_PART, "offset", [0] * 400_000),
    "a file outside": _at("files", _PATH, _PASSWORDS),
    "a key that is a path": _at("rows", "key", 1, _PATH),
    "a digest of pixels of 10^12": _at("rows", "pixels", 1, _HUGE),
    "a view 10^8 pixels wide": _at("rows", "view", 1, 4, 10**8),
}
_INDEX = {
    "a height of 10^12": _at("rows", "height", 1, _HUGE),
    "an offset of -1": _at("rows", "picture", 1, 0, -1),
    "an offset of 2^64-1": _at("rows", "mask", 1, 0, 2**64 - 1),
    "a size of 10^12": _at("rows", "picture", 1, 1, _HUGE),
    "a key that is a path": _at("rows", "key", 1, _PATH),
    "400,000 rows": _at("rows", "key", ["p"] * 400_000),
}
_DATASET = {
    "a size of -1": _at("shards", 0, "size", -1),
    "a split that is a path": _at("shards", 0, "split", _PATH),
    "a geometry of 10^9": _at("geometry", "height", 10**9),
    "a member that we do not know": _at("url", "http://localhost/"),
}
_IDENTITY_FILE = "cache/identity.json"
_SMP = {
    "name": "smp", "arch": "unet", "encoder": "tu-mobilenetv2_035", "classes": 1,
    "mean": [0.5] * 3, "std": [0.5] * 3, "decoder_channels": None,
}  # fmt: skip
_NETWORKS = {
    "of 10^9 parameters": world.UNET | {"width": 1024, "depth": 3},
    "with a member that we do not know": world.UNET | {"code": "import os"},
    "of an unknown name": world.UNET | {"name": "os.system"},
    "fetched from a hub": _SMP | {"encoder": "tu-hf-hub:enemy/network"},
    "of a path": _SMP | {"encoder": _PATH},
    "of 856 million parameters": _SMP | {"encoder": "tu-convnext_xxlarge"},
    "of 100,000 decoder channels": _SMP | {"decoder_channels": [1] * 100_000},
}
_STUDENT = {
    "a geometry of 10^9": _at("geometry", "height", 10**9),
    "a batch of 10^12": _at("batch", _HUGE),
    "a sha256 of another file": _at("weights_sha256", "0" * 64),
    **{f"a network {name}": _at("network", value) for name, value in _NETWORKS.items()},
}
_STATE = {
    "a step of 10^12": _at("step", _HUGE),
    "a scaler that is a list": _at("scaler", [1]),
}
_STEP = "run/checkpoints/step-000002/state.json"
_HEADS: dict[str, Callable[[], bytes]] = {
    "nested 100,000 deep": lambda: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "of 19 MB of spaces": lambda: b'{"a":1' + b" " * 19_000_000 + b"}",
    "that is not UTF-8": lambda: b'{"a":"\xff\xfe"}',
}
_SAYS = (
    "is not what|not an identity|no such|not a cache|another format|of another step|cannot build"
    "|more parameters|description is wrong|not possible"
)


def _cases() -> Iterator[Case]:
    rows, pictures = world.read_rows, world.read_pictures
    for file, edit, read, changes in (
        ("identity.json", world.edit_file(_IDENTITY_FILE), rows, _IDENTITY),
        ("shard.json", world.edit_shard_index, rows, _SHARD),
        ("the pictures' index", world.edit_index, pictures, _INDEX),
        ("dataset.json", world.edit_dataset, pictures, _DATASET),
        ("student.json", world.edit_file("run/student.json"), world.use_run, _STUDENT),
        ("state.json", world.edit_file(_STEP), world.resume, _STATE),
    ):
        for name, change in changes.items():
            yield Case(name=f"{name} in {file}", make=edit(change), read=read, says=_SAYS)
    for name, head in _HEADS.items():

        def make(folder: Path, head: Callable[[], bytes] = head) -> None:
            world.sign(folder / _IDENTITY_FILE, head())

        yield Case(name=f"identity.json {name}", make=make, read=rows, says=_SAYS)


CASES = tuple(_cases())
