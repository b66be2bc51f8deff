"""Caches whose checksums are right and whose content is an enemy's."""

import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import world
import zstandard_frames as frames
from harness import Case

from stillroom.jsonfile import read_json

_READ, _SCRUB = world.read_rows("zarr"), world.scrub("zarr")
_HUGE = 10**12
_BAD = (
    "not an identity|not a cache of|no such codec|takes no argument|no such body"
    "|not what this cache needs|belongs to another"
)
_NUMBERS: dict[str, Any] = {
    "-1": -1,
    "0.5": 0.5,
    "true": True,
    "null": None,
    "text": "1",
    "a list": [1],
    "10^12": _HUGE,
    "2^64-1": 2**64 - 1,
    "10^4000": 10**4000,
}


def _at(*path: Any) -> Callable[[Any, Any], None]:
    """A setter of one value deep in a body."""

    def put(value: Any, body: Any) -> None:
        for step in path[:-1]:
            body = body[step]
        body[path[-1]] = value

    return put


_IDENTITY_NUMBERS = {
    "a shape": _at("targets", "mask", "shape", 0),
    "a stride": _at("targets", "mask", "stride"),
    "rows": _at("pictures", "shards", 0, "rows"),
    "a shard's number": _at("pictures", "shards", 0, "number"),
    "views": _at("views", "train", "count"),
    "a height": _at("geometry", "height"),
}
_RECORD_NUMBERS = {
    "an offset": _at("parts", "mask.value", "offset", 1),
    "a size": _at("parts", "mask.value", "size", 1),
    "a crc32c": _at("parts", "mask.value", "crc32c", 1),
    "a file's size": _at("files", "mask.value/c/0/0/0/0", "size"),
    "a view": _at("rows", "view", 1, 0),
    "the last of a view": _at("rows", "view", 1, 4),
    "a region": _at("rows", "region", 1),
}
_LEGAL = {("a region", "null")}


def _numbers() -> Iterator[Case]:
    for edit, places, file in (
        (world.edit_identity, _IDENTITY_NUMBERS, "identity.json"),
        (world.edit_record, _RECORD_NUMBERS, "shard.json"),
    ):
        for place, put in places.items():
            for name, value in _NUMBERS.items():
                if (place, name) not in _LEGAL:
                    make = edit(partial(put, value))
                    yield Case(
                        name=f"{place} is {name} in {file}",
                        make=make,
                        read=_READ,
                        says=_BAD,
                    )


_IDENTITIES: dict[str, tuple[Callable[[Any, Any], None], Any]] = {
    "a codec that is not ours": (_at("targets", "mask", "codec"), "pickle"),
    "a codec with an argument": (_at("targets", "mask", "codec"), "float16:9"),
    "a codec that is a list": (_at("targets", "mask", "codec"), ["float16"]),
    "a codec of Blosc": (_at("targets", "mask", "codec"), "blosc"),
    "a kind that is none": (_at("targets", "mask", "kind"), "object"),
    "a shape of 2^28 values": (_at("targets", "mask", "shape"), [1 << 14, 1 << 14, 1]),
    "a shape of four": (_at("targets", "mask", "shape"), [2, 2, 2, 4]),
    "a shape of none": (_at("targets", "mask", "shape"), []),
    "a body that is not ours": (_at("body"), "pickle"),
    "a body that is a list": (_at("body"), ["zarr"]),
    "another format": (_at("format"), "stillroom cache 2"),
    "a split that is a path": (_at("pictures", "shards", 0, "split"), "../../etc"),
    "a calibration of numbers": (_at("calibration"), [1, 2]),
    "a calibration key that is a path": (_at("calibration"), ["../../etc/passwd"]),
    "a calibration that is an object": (_at("calibration"), {"a": 1}),
    "a member of nothing we know": (_at("url"), "http://localhost/"),
    "targets that are a list": (_at("targets"), [1]),
    "no targets": (_at("targets"), {}),
    "a teacher that is a text": (_at("targets", "mask", "teacher"), "os.system"),
}


def _target(name: str) -> Callable[[Any], None]:
    return lambda body: body["targets"].update({name: body["targets"].pop("mask")})


def _many_targets(body: Any) -> None:
    body["targets"] = {f"t{i}": body["targets"]["mask"] for i in range(10_000)}


def _identities() -> Iterator[Case]:
    for name, (put, value) in _IDENTITIES.items():
        make = world.edit_identity(partial(put, value))
        yield Case(name=f"{name} in identity.json", make=make, read=_READ, says=_BAD)
    for name in ("../../etc/passwd", "/etc/passwd", "a\0b", "x" * 300, "", "A"):
        make = world.edit_identity(_target(name))
        yield Case(
            name=f"a target {name[:20]!r} in identity.json", make=make, read=_READ, says=_BAD
        )
    make = world.edit_identity(_many_targets)
    yield Case(name="10,000 targets in identity.json", make=make, read=_READ, says=_BAD)
    make = world.edit_identity(lambda body: body["pictures"].update(shards=[]))
    yield Case(name="no shards in identity.json", make=make, read=_READ, says=_BAD)


_KEYS = {
    "a path upwards": "../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a zero byte": "p\0",
    "10,000 letters": "p" * 10_000,
    "a newline": "p1\n",
    "no text": 1,
    "nothing": "",
    "the key before": "p0",
}
_RECORDS: dict[str, tuple[Callable[[Any, Any], None], Any]] = {
    "two rows in one place": (_at("parts", "mask.value", "offset", 1), 0),
    "a row over the next": (_at("parts", "mask.value", "size", 1), 100),
    "a column too short": (_at("parts", "mask.value", "crc32c"), [1]),
    "a column that is an object": (_at("parts", "mask.value", "size"), {"0": 1}),
    "a million columns": (_at("parts", "mask.value", "offset"), [0] * 400_000),
    "a part that is not there": (_at("parts", "mask.more"), {"offset": [], "size": []}),
    "a file outside": (_at("files", "../../../etc/passwd"), {"size": 1, "sha256": "0" * 64}),
    "an absolute file": (_at("files", "/etc/passwd"), {"size": 1, "sha256": "0" * 64}),
    "no files": (_at("files"), {}),
    "files that are a list": (_at("files"), []),
    "a sha256 that is a number": (_at("files", "zarr.json", "sha256"), 1),
    "statistics of another target": (_at("statistics"), {"other": {}}),
    "statistics that are texts": (_at("statistics", "mask", "min"), ["a"] * 5),
    "rows that are a list": (_at("rows"), []),
    "a view of nothing": (_at("rows", "view", 1), [0, 5, 5, 5, 5, 0]),
    "a view of five numbers": (_at("rows", "view", 1), [0, 0, 0, 1, 1]),
    "another shard's number": (_at("number"), 1),
    "another cache's fingerprint": (_at("fingerprint"), "0" * 64),
    "provenance that is a list": (_at("provenance"), []),
}


def _records() -> Iterator[Case]:
    for name, (put, value) in _RECORDS.items():
        make = world.edit_record(partial(put, value))
        yield Case(name=f"{name} in shard.json", make=make, read=_READ, says=_BAD)
    for name, key in _KEYS.items():
        for body in world.BODIES:
            make = world.edit_record(partial(_at("rows", "key", 1), key), body)
            read = world.read_rows(body)
            yield Case(name=f"a key with {name} ({body})", make=make, read=read, says=_BAD)


def _frame_case(name: str, frame: bytes) -> Case:
    """The first row's frame replaced, every checksum and offset right."""

    def make(folder: Path) -> None:
        shard = folder / world.SHARD["zarr"]
        part = read_json(shard / "shard.json")["parts"]["mask.value"]
        path = shard / "mask.value/c/0/0/0/0"
        data = path.read_bytes()
        spans = list(zip(part["offset"], part["size"], strict=True))
        chunks = [data[offset : offset + size] for offset, size in spans]
        chunks[0] = frame
        body, columns = frames.join(chunks)
        path.write_bytes(body)
        put = partial(_at("parts", "mask.value"), columns)
        world.edited(shard / "shard.json", put)
        world.replace_file(folder, path.relative_to(folder).as_posix(), body)

    says = "is damaged in|a frame of"
    return Case(name=f"a frame that {name}", make=make, read=_READ, says=says)


def _frames() -> Iterator[Case]:
    row = np.ones((2, 4, 4), np.float16).tobytes()
    bomb = bytes(20_000_000)  # 600 bytes: a frame of any more is refused for its own size
    good, large = frames.compress(row), frames.compress(bomb)
    yield _frame_case("states and holds 20 MB", large)
    yield _frame_case("states 64 bytes and holds 20 MB", frames.restate(large, len(row)))
    yield _frame_case("states 64 bytes and holds 32", frames.restate(frames.compress(row[:32]), 64))
    yield _frame_case("states 2^64-1 bytes", frames.restate(good, 2**64 - 1))
    yield _frame_case("states no size", frames.without_size(row))
    yield _frame_case("is followed by another", good + large[: 1 << 10])
    yield _frame_case("wants a dictionary", frames.with_dictionary(good))
    yield _frame_case("has a window of 2^41 bytes", frames.with_window(good))
    yield _frame_case("is cut", good[:-3])
    yield _frame_case("is one byte", b"\x28")
    yield _frame_case("is skippable", struct.pack("<2I", 0x184D2A50, 64) + bytes(64))


def _zarr(name: str, change: Callable[[Any], object], file: str = "mask.value/zarr.json") -> Case:
    """zarr.json changed, its checksum right: our reader never looks, the scrub compares."""

    def make(folder: Path) -> None:
        path = folder / world.SHARD["zarr"] / file
        document = json.loads(path.read_bytes())
        change(document)
        data = json.dumps(document).encode()
        world.replace_file(folder, path.relative_to(folder).as_posix(), data)

    says = "another shape, type|not the metadata|more than a group"
    return Case(name=f"{name} in {file}", make=make, read=_SCRUB, says=says)


def _zarr_files() -> Iterator[Case]:
    yield _zarr("a shape of 10^12", lambda d: d.update(shape=[_HUGE, 2, 4, 4]))
    yield _zarr("data of Python objects", lambda d: d.update(data_type="object"))
    yield _zarr("a codec that unpickles", lambda d: d.update(codecs=[{"name": "numcodecs.pickle"}]))
    inner = {"name": "numcodecs.pickle", "configuration": {}}
    change = _at("codecs", 0, "configuration", "codecs")
    yield _zarr("an inner codec that unpickles", partial(change, [inner]))
    yield _zarr("another fill value", lambda d: d.update(fill_value=0))
    yield _zarr(
        "chunks of 10^12", partial(_at("chunk_grid", "configuration"), {"chunk_shape": [_HUGE]})
    )
    yield _zarr("a storage transformer", lambda d: d.update(storage_transformers=[{"name": "x"}]))
    other = {"metadata": {"mask.value": {"codecs": ["x"]}}}
    yield _zarr("other arrays", lambda d: d.update(consolidated_metadata=other), "zarr.json")
    yield _zarr("an array", lambda d: d.update(node_type="array"), "zarr.json")


def _tar_member(what: str, **fields: Any) -> Case:
    """The header of the first member changed, every checksum right: readers of tars look at it."""

    def make(folder: Path) -> None:
        path = folder / world.SHARD["tar"] / "rows.tar"
        data = path.read_bytes()
        member = tarfile.TarInfo.frombuf(data[:512], "utf-8", "strict")
        for field, value in fields.items():
            setattr(member, field, value)
        world.replace_file(
            folder, path.relative_to(folder).as_posix(), _header(member) + data[512:]
        )

    return Case(name=f"{what} in rows.tar", make=make, read=world.scrub("tar"), says="no header of")


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.USTAR_FORMAT)


def _tar_files() -> Iterator[Case]:
    yield _tar_member("a link", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    yield _tar_member("a hard link", type=tarfile.LNKTYPE, linkname="../../etc/passwd")
    yield _tar_member("a device", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
    yield _tar_member("a FIFO", type=tarfile.FIFOTYPE)
    yield _tar_member("a folder", type=tarfile.DIRTYPE)
    yield _tar_member("a path upwards", name="../../etc/passwd")
    yield _tar_member("an absolute path", name="/etc/passwd")
    yield _tar_member("another key", name="p1.mask.value.zst")
    yield _tar_member("a size of 8 GB", size=8**11 - 1)


CASES = (
    *_tar_files(),
    *_numbers(),
    *_identities(),
    *_records(),
    *_frames(),
    *_zarr_files(),
)
