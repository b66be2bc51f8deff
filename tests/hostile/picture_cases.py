"""Picture shards whose checksums are right, sources to pack, and pictures that are bombs."""

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import world
from harness import Case

from stillroom.jsonfile import read_json

_NUMBERS: dict[str, Any] = {
    "-1": -1,
    "0.5": 0.5,
    "true": True,
    "null": None,
    "text": "16",
    "10^12": 10**12,
    "2^64-1": 2**64 - 1,
    "10^4000": 10**4000,
}
_BAD = "malformed|the digest is not that|wrong size"
_LISTS = (
    "outside its folder|too long|makes no key|not UTF-8|two pictures with the key|is missing"
    "|holds no picture"
)
_LIST = "voc/ImageSets/Segmentation/train.txt"


def _at(*path: Any) -> Callable[[Any, Any], None]:
    """A setter of one value deep in a body."""

    def put(value: Any, body: Any) -> None:
        for step in path[:-1]:
            body = body[step]
        body[path[-1]] = value

    return put


def _numbers() -> Iterator[Case]:
    index = {
        "a height": _at("rows", "height", 1),
        "inside": _at("rows", "inside", 1, 2),
        "an offset": _at("rows", "picture", 1, 0),
        "a size": _at("rows", "picture", 1, 1),
        "a crc32c": _at("rows", "picture", 1, 2),
        "an offset of a mask": _at("rows", "mask", 1, 0),
    }
    data = {
        "rows": _at("shards", 0, "rows"),
        "a size": _at("shards", 0, "size"),
        "a shard's number": _at("shards", 0, "number"),
        "a colour": _at("palette", 0, 0),
    }
    for edit, places, file in (
        (world.edit_index, index, "the index"),
        (world.edit_dataset, data, "dataset.json"),
    ):
        for place, put in places.items():
            for name, value in _NUMBERS.items():
                yield Case(
                    name=f"{place} is {name} in {file}",
                    make=edit(partial(put, value)),
                    read=world.read_pictures,
                    says=_BAD,
                )


_INDEXES: dict[str, tuple[Callable[[Any, Any], None], Any]] = {
    "a member in another's place": (_at("rows", "picture", 1, 0), 512),
    "a member over its mask": (_at("rows", "picture", 1, 1), 3000),
    "a member of two numbers": (_at("rows", "picture", 1), [0, 1]),
    "an empty member": (_at("rows", "picture", 1), []),
    "a row without a picture": (_at("rows", "picture", 1), None),
    "a column too short": (_at("rows", "mask"), []),
    "a column that is an object": (_at("rows", "mask"), {"0": None}),
    "a picture of 101 megapixels": (_at("rows", "height"), [101_000_000] * 5),
    "a picture of another size": (_at("rows", "height", 1), 17),
    "a key upwards": (_at("rows", "key", 1), "../../etc/passwd"),
    "an absolute key": (_at("rows", "key", 1), "/etc/passwd"),
    "a key with a zero byte": (_at("rows", "key", 1), "p0\0"),
    "a key of 10,000 letters": (_at("rows", "key", 1), "p0" * 5000),
    "a key that is a number": (_at("rows", "key", 1), 1),
    "a key twice": (_at("rows", "key", 1), "p0"),
    "400,000 rows": (_at("rows", "key"), ["p"] * 400_000),
    "another split": (_at("split"), "../../etc"),
    "rows that are a list": (_at("rows"), []),
}
_DATASETS: dict[str, tuple[Callable[[Any, Any], None], Any]] = {
    "a split that is a path": (_at("shards", 0, "split"), "../../etc"),
    "a member of nothing we know": (_at("shards", 0, "url"), "http://localhost/"),
    "a sha256 that is a path": (_at("shards", 0, "sha256"), "../" * 21 + "x"),
    "a geometry of 10^9": (_at("geometry", "height"), 10**9),
    "a geometry of text": (_at("geometry", "height"), "16"),
    "a geometry that is a list": (_at("geometry"), [16, 16]),
    "a fit that is none": (_at("geometry", "fit"), "crop"),
    "300,000 classes": (_at("classes"), ["a"] * 300_000),
    "classes that are numbers": (_at("classes"), [1, 2]),
    "a palette of pairs": (_at("palette"), [[1, 2], [3, 4]]),
    "shards that are an object": (_at("shards"), {}),
    "a digest that is null": (_at("digest"), None),
    "another format": (_at("format"), "stillroom pictures 2"),
}


def _bodies() -> Iterator[Case]:
    for name, (put, value) in _INDEXES.items():
        make = world.edit_index(partial(put, value))
        yield Case(name=f"{name} in the index", make=make, read=world.read_pictures, says=_BAD)
    for name, (put, value) in _DATASETS.items():
        make = world.edit_dataset(partial(put, value))
        says = "another format" if name == "another format" else _BAD
        yield Case(name=f"{name} in dataset.json", make=make, read=world.read_pictures, says=says)
    make = world.edit_dataset(lambda body: body["shards"].append(body["shards"][0]))
    yield Case(name="a shard twice in dataset.json", make=make, read=world.read_pictures, says=_BAD)


# pictures


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def _png(width: int, height: int, pixels: bytes, before: bytes = b"") -> bytes:
    """An RGB PNG of whatever size and content."""
    head = _chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    end = _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + before + end


def _jpeg(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose scans are empty: each is a pass over all pixels."""
    tables = b"\xff\xdb\0\x43\0" + b"\1" * 64
    frame = b"\xff\xc2\0\x0b\x08" + struct.pack(">2H", height, width) + b"\1\1\x11\0"
    huffman = b"\xff\xc4\0\x14\0" + bytes([1, *[0] * 15]) + b"\0"
    scan = b"\xff\xda\0\x08\1\1\0\0\0\0" + b"\0" * 8
    return b"\xff\xd8" + tables + frame + huffman + scan * scans + b"\xff\xd9"


def _webp(width: int, height: int) -> bytes:
    """The head of a lossless WebP of 16,383 pixels a side at most."""
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", bits) + b"\0"
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


_ROW = bytes(1 + 3 * 16)
_BOMBS: dict[str, Callable[[], bytes]] = {
    "a PNG of 10^9 pixels": lambda: _png(31_623, 31_623, bytes(1000)),
    "a PNG of 101 megapixels": lambda: _png(10_100, 10_000, bytes(1000)),
    "a PNG of 2^31 pixels a side": lambda: _png(2**31 - 1, 2**31 - 1, b""),
    "a PNG with 100 MB of packed text": lambda: _png(
        16, 16, _ROW * 16, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))
    ),
    "a PNG with 90 MB of text": lambda: _png(
        16, 16, _ROW * 16, _chunk(b"tEXt", b"a\0" + b"x" * 1_000_000) * 90
    ),
    "a PNG with a chunk of 2 GB": lambda: (
        _png(16, 16, b"")[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt"
    ),
    "a JPEG of 4 gigapixels": lambda: _jpeg(65_500, 65_500, 1),
    "a JPEG of 99 megapixels in 5,000 scans": lambda: _jpeg(9_900, 10_000, 5_000),
    "a JPEG of 100,000 segments": lambda: b"\xff\xd8" + b"\xff\xe0\0\x02" * 100_000,
    "a WebP of 268 megapixels": lambda: _webp(16_383, 16_383),
    "a TIFF that begins with itself": lambda: (
        b"II*\0" + struct.pack("<IH", 8, 0) + struct.pack("<I", 8)
    ),
    "a PostScript program": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n",
    "an SVG": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


_SIZES = {  # what the index says of the others is 16 x 16
    "a JPEG of 99 megapixels in 5,000 scans": {
        "height": [9_900], "width": [10_000], "inside": [[0, 0, 10_000, 9_900]]
    },
}  # fmt: skip


def _put_first(folder: Path, data: bytes, **more: Any) -> None:
    """Make `data` the first picture of the shard, every checksum and offset right."""
    folder /= "shards"
    index = read_json(folder / "train-000000.json")["rows"]
    tar = (folder / "train-000000.tar").read_bytes()
    end = len(tar) + 512
    (folder / "train-000000.tar").write_bytes(tar + bytes(512) + data)
    last = [end, len(data), google_crc32c.value(data)]
    rows = {name: [column[0]] for name, column in index.items()}
    rows |= {"mask": [None], "extra": [None], "picture": [last]} | more
    if more.get("extra") == "it":
        rows |= {"picture": index["picture"][:1], "extra": [last]}
    world.edit_index(lambda body: body.update(rows=rows))(folder.parent)
    world.edit_dataset(partial(_at("shards", 0, "rows"), 1))(folder.parent)
    world.edit_dataset(partial(_at("geometry"), None))(folder.parent)


def _pictures() -> Iterator[Case]:
    for name, data in _BOMBS.items():

        def make(folder: Path, name: str = name, data: Callable = data) -> None:
            _put_first(folder, data(), **_SIZES.get(name, {}))

        yield Case(name=f"{name} in a shard", make=make, read=world.read_pictures, says="decoded")

        def make(folder: Path, data: Callable[[], bytes] = data) -> None:
            (folder / "voc/JPEGImages/p1.png").write_bytes(data())

        says = "not a readable picture|more than 100 mega"
        yield Case(name=f"{name} in a source", make=make, read=world.pack_again, says=says)
    extras = {
        "nested 100,000 deep": b"[" * 100_000,
        "a list": b"[]",
        "no JSON": b"{",
        "2 MB": b'{"a":"' + b"x" * 2_000_000 + b'"}',
    }
    for name, data in extras.items():
        make_extra = partial(_put_first, data=data, extra="it")
        says = "malformed" if name == "2 MB" else "is no object"
        yield Case(
            name=f"what a picture says is {name}",
            make=make_extra,
            read=world.read_pictures,
            says=says,
        )


def _sources() -> Iterator[Case]:
    lists = {
        "a name upwards": b"../../secret",
        "a name upwards inside": b"a/../../../secret",
        "an absolute name": b"/etc/passwd",
        "a name with a zero byte": b"p1\0",
        "a name of 10,000 letters": b"p" * 10_000,
        "a name that is not UTF-8": b"\xff\xfe",
        "10^7 lines": b"p\n" * 10_000_000,
        "10^7 empty lines": b"\n" * 10_000_000,
        "one picture 900,000 times": b"p1\n" * 900_000,
    }
    for name, data in lists.items():

        def make(folder: Path, data: bytes = data) -> None:
            (folder / _LIST).write_bytes(data)

        yield Case(name=f"{name} in train.txt", make=make, read=world.pack_again, says=_LISTS)
    names = {"300 names": b"".join(b"%d\n" % i for i in range(300)), "2 MB": b"a" * 2_000_000}
    names["what is not UTF-8"] = b"\xff\n"
    for name, data in names.items():

        def make(folder: Path, data: bytes = data) -> None:
            (folder / "voc/classes.txt").write_bytes(data)

        yield Case(
            name=f"{name} in classes.txt", make=make, read=world.pack_again, says="class|too large"
        )


CASES = (*_numbers(), *_bodies(), *_pictures(), *_sources())
