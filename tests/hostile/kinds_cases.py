"""Something else than a file in every place, files far too large, and JSON that is none of ours."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import world
from harness import Case

_ZARR, _TAR = world.SHARD["zarr"], world.SHARD["tar"]
_SHARD = f"{_ZARR}/shard.json"
_ROWS = f"{_ZARR}/mask.value/c/0/0/0/0"
_JSON: dict[str, Callable[[Path], object]] = {
    "shards/dataset.json": world.read_pictures,
    "shards/train-000000.json": world.read_pictures,
    "cache-zarr/identity.json": world.read_rows("zarr"),
    "cache-zarr/manifest.json": world.read_rows("zarr"),
    _SHARD: world.read_rows("zarr"),
    "run/student.json": world.use_run,
    "run/checkpoints/step-000002/state.json": world.resume,
}
_OTHERS: dict[str, Callable[[Path], object]] = {
    "shards/train-000000.tar": world.read_pictures,
    "cache-zarr/codecs.safetensors": world.read_rows("zarr"),
    _ROWS: world.read_rows("zarr"),
    f"{_ZARR}/mask.value/zarr.json": world.scrub("zarr"),
    f"{_ZARR}/zarr.json": world.scrub("zarr"),
    f"{_TAR}/rows.tar": world.read_rows("tar"),
    "run/student.safetensors": world.teach_with_run,
    "run/checkpoints/step-000002/model.safetensors": world.resume,
    "run/checkpoints/step-000002/optimizer.safetensors": world.resume,
    "w.bin": world.teach_with_onnx(),
}
_NAMED_BY_THE_USER: dict[str, Callable[[Path], object]] = {
    "network.onnx": world.teach_with_onnx(),
    "weights.pt": world.load_foreign,
    "voc/JPEGImages/p1.png": world.pack_again,
    "voc/SegmentationClass/p1.png": world.pack_again,
    "voc/ImageSets/Segmentation/train.txt": world.pack_again,
}


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name(f"{path.name}.elsewhere")))


def _huge(path: Path) -> None:
    world.sparse(path, 2 << 30, path.read_bytes())


def _empty(path: Path) -> None:
    path.write_bytes(b"")


_KINDS = {"fifo": _fifo, "device": _device, "folder": _folder, "2 GB": _huge, "empty": _empty}


_ODD = (
    "no regular file|too large|another size|is missing|not what|no file|wrong size|cannot be"
    "|finished|no such|damaged|readable|no picture|a link|no mask|too short|does not exist"
    "|not an ONNX file|no safetensors file|holds no picture|is empty"
)
_NONE = (
    "no JSON|not JSON|too large|another format|not a cache|not what|belongs|malformed|damaged"
    "|names no"
)


def _kinds() -> Iterator[Case]:
    ours = _JSON | _OTHERS
    for file, read in (ours | _NAMED_BY_THE_USER).items():
        for kind, spoil in (_KINDS | ({"link": _link} if file in ours else {})).items():

            def make(folder: Path, file: str = file, spoil: Callable = spoil) -> None:
                spoil(folder / file)

            if (file, kind) != ("w.bin", "2 GB"):  # what lies after the weights does no harm
                yield Case(name=f"{kind} as {file}", make=make, read=read, says=_ODD)


_MEMBERS = b'{"a":1,"format":"stillroom cache 1"}'
_HEADS: dict[str, Callable[[], bytes]] = {
    "spaces": lambda: b'{"a":1' + b" " * 1000 + b"}",
    "19 MB of spaces": lambda: b'{"a":1' + b" " * 19_000_000 + b"}",
    "nested 100,000 deep": lambda: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested 900 deep": lambda: b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "objects nested 100,000 deep": lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a member twice": lambda: b'{"a":1,"a":2}',
    "members unsorted": lambda: b'{"b":1,"a":2}',
    "1e400": lambda: b'{"a":1e400}',
    "NaN": lambda: b'{"a":NaN}',
    "-Infinity": lambda: b'{"a":-Infinity}',
    "a number of 5,000 digits": lambda: b'{"a":' + b"9" * 5000 + b"}",
    "two million numbers": lambda: b'{"a":[' + b"1.5," * 2_000_000 + b"0]}",
    "two million empty lists": lambda: b'{"a":[' + b"[]," * 2_000_000 + b"0]}",
    "two million objects": lambda: b'{"a":[' + b'{"a":1},' * 1_990_000 + b"0]}",
    "a million members": lambda: _members(1_000_000),
    "a string of 18 MB outside ASCII": lambda: (
        b'{"a":"' + b"x" * 18_000_000 + "😀".encode() + b'"}'
    ),
    # as much as is parsed at all
    "330,000 members": lambda: _members(330_000),
    "240,000 objects": lambda: b'{"a":[' + b'{"a":"bc"},' * 240_000 + b"0]}",
    "a string of 6 MB outside ASCII": lambda: b'{"a":"' + b"x" * 6_000_000 + "😀".encode() + b'"}',
    "a string of 19 MB": lambda: b'{"a":"' + b"x" * 19_000_000 + b'"}',
    "not UTF-8": lambda: b'{"a":"\xff\xfe"}',
    "UTF-16": lambda: '{"a":1}'.encode("utf-16"),
    "half a surrogate": lambda: b'{"a":"\\ud800"}',
    "a list": lambda: b"[1,2]",
    "a number": lambda: b"1}",
    "no member": lambda: b"{}",
    "a checksum as a member": lambda: b'{"sha256":"x"}',
    "nothing": lambda: b"}",
    "members of nothing we know": lambda: _MEMBERS,
}


def _members(count: int) -> bytes:
    return b"{" + b",".join(b'"%06x":1.5' % i for i in range(count)) + b"}"


def _texts() -> Iterator[Case]:
    for name, head in _HEADS.items():
        files = _JSON if len(name) < 12 else {_SHARD: world.read_rows("zarr")}
        for file, read in files.items():

            def make(folder: Path, file: str = file, head: Callable[[], bytes] = head) -> None:
                world.sign(folder / file, head())

            yield Case(name=f"{name} in {file}", make=make, read=read, says=_NONE)


def _loose_json() -> Iterator[Case]:
    """Files that zarr made and metrics are no JSON of ours; the scrub compares the first."""
    texts = {
        "nested 100,000 deep": b"[" * 100_000,
        "NaN": b"NaN",
        "a list": b"[]",
        "codecs that are numbers": b'{"codecs":[1]}',
    }
    for name, text in texts.items():
        for file in (f"{_ZARR}/mask.value/zarr.json", f"{_ZARR}/zarr.json"):

            def make(folder: Path, file: str = file, text: bytes = text) -> None:
                world.replace_file(folder, file, text)

            yield Case(
                name=f"{name} in {file}",
                make=make,
                read=world.scrub("zarr"),
                says="not the metadata",
            )


CASES = (*_kinds(), *_texts(), *_loose_json())
