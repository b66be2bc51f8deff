"""What is no JSON: frames, pictures and tensors that are bombs, lists of paths, and no files."""

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import world
from harness import Case
from numcodecs import zstd

_ROWS, _PICTURE = "mask.value/c/0/0/0/0", "voc/JPEGImages/p1.png"
_LIST, _STEP = "voc/ImageSets/Segmentation/train.txt", "run/checkpoints/step-000002"


def _restated(frame: bytes, size: int) -> bytes:
    """Return a zstd frame with another content size, of eight bytes (RFC 8878, 3.1.1)."""
    single, width = frame[4] >> 5 & 1, frame[4] >> 6
    blocks = frame[5 + (1 - single) + (single, 2, 4, 8)[width] :]
    return frame[:4] + b"\xc0\x38" + struct.pack("<Q", size) + blocks


_LARGE = zstd.compress(bytes(20_000_000), 1)
_FRAMES = {
    "states and holds 20 MB": _LARGE,
    "states 64 bytes and holds 20 MB": _restated(_LARGE, 64),
    "states no size and holds 20 MB": _restated(_LARGE, 2**64 - 1),
}


def _frame(folder: Path, data: bytes) -> None:
    """Append a frame to the shard's file and make it that of the first row."""
    end = (folder / world.SHARD / _ROWS).stat().st_size
    world.append(folder / world.SHARD / _ROWS, data)
    span = {"offset": end, "size": len(data), "crc32c": google_crc32c.value(data)}

    def change(body: Any) -> None:
        body["files"][_ROWS]["size"] = end + len(data)
        for column, value in span.items():
            body["parts"]["mask.value"][column][0] = value

    world.edit_shard_index(change)(folder)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(side: int, before: bytes = b"") -> bytes:
    """An RGB PNG of whatever size, and hardly a pixel."""
    head = _chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0))
    end = _chunk(b"IDAT", zlib.compress(bytes(1000))) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + before + end


_TEXT = _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))
_PICTURES = {
    "a PNG of 10^9 pixels": _png(31_623),
    "a PNG with 100 MB of packed text": _png(16, _TEXT),
    "a PostScript program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n",
}


def _picture(folder: Path, data: bytes) -> None:
    """Append a picture to the tar and make it that of the first row."""
    tar = folder / "shards" / f"{world.TRAIN}.tar"
    span = [tar.stat().st_size, len(data), google_crc32c.value(data)]
    world.append(tar, data)
    world.edit_index(lambda body: body["rows"]["picture"].__setitem__(0, span))(folder)


def _tensor(shape: list[int], end: int) -> bytes:
    """A safetensors file of one tensor, without its values."""
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(text)) + text


_WEIGHTS: dict[str, tuple[bytes, int]] = {  # and bytes of zeros after them
    "a header of 8 EB": (struct.pack("<Q", 1 << 63), 8),
    "a header of 90 MB": (struct.pack("<Q", 90_000_000), 90_000_000),
    "a shape of 10^12": (_tensor([10**12], 4), 4),
    "256 MB of zeros": (_tensor([1 << 26], 1 << 28), 1 << 28),
}


def _weights(folder: Path, head: bytes, zeros: int) -> None:
    world.sparse(folder / "run/student.safetensors", len(head) + zeros, head)
    world.rehash(folder / "run")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _large(path: Path) -> None:
    world.sparse(path, 1 << 29, path.read_bytes())


def _link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name(f"{path.name}.elsewhere")))


_READ = {
    world.read_pictures: ["shards/dataset.json", "shards/train-000000.json",
                          "shards/train-000000.tar"],
    world.read_rows: ["cache/identity.json", "cache/manifest.json", "cache/codecs.safetensors",
                      f"{world.SHARD}/shard.json", f"{world.SHARD}/{_ROWS}"],
    world.use_run: ["run/student.json"],
    world.teach_with_run: ["run/student.safetensors"],
    world.resume: [f"{_STEP}/state.json", f"{_STEP}/model.safetensors"],
    world.load_foreign: ["weights.pt"],
    world.pack_again: [_PICTURE, _LIST],
}  # fmt: skip
_KIND = (
    "no regular file|too large|another size|is not what|wrong size|not a finished|is missing"
    "|cannot be read as weights|no such weights|not a readable picture|is damaged"
)


def _case(name: str, read: Callable[[Path], object], says: str, make: Callable, *more: Any) -> Case:
    return Case(name=name, make=lambda folder: make(folder, *more), read=read, says=says)


def _write(folder: Path, file: str, data: bytes) -> None:
    (folder / file).write_bytes(data)


def _cases() -> Iterator[Case]:
    for name, data in _FRAMES.items():
        yield _case(f"a frame that {name}", world.read_rows, "is damaged in", _frame, data)
    for name, data in _PICTURES.items():
        yield _case(f"{name} in a shard", world.read_pictures, "be decoded", _picture, data)
        says = "not a readable picture|more than 100 mega"
        yield _case(f"{name} in a source", world.pack_again, says, _write, _PICTURE, data)
    name, says = "a name that leads upwards in train.txt", "outside its folder"
    yield _case(name, world.pack_again, says, _write, _LIST, b"a/../../../x")
    for name, (head, zeros) in _WEIGHTS.items():
        says = "no safetensors file|does not fit the network"
        yield _case(f"{name} in weights", world.teach_with_run, says, _weights, head, zeros)
    for read, files in _READ.items():
        is_named_by_the_user = read in (world.load_foreign, world.pack_again)
        for spoil in (_fifo, _large) if is_named_by_the_user else (_fifo, _large, _link):
            for file in files:
                name = f"{spoil.__name__[1:]} as {file}"
                yield _case(name, read, _KIND, lambda f, file, spoil: spoil(f / file), file, spoil)


CASES = tuple(_cases())
