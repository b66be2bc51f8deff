"""The reader of picture shards: any picture by number, every byte checked on every read.

A read is one `pread` and one decode per member (docs/format.md section 2). Opened shards are shared
and may be read from many threads; nothing here writes.
"""

import functools
import hashlib
import itertools
import json
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from jaxtyping import UInt8

from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import digest as json_digest
from stillroom.jsonfile import open_regular, read_json
from stillroom.pictures.decode import MAX_FILE_BYTES, MAX_PIXELS, MAX_SIDE_PX, decode_stored
from stillroom.pictures.keys import key_problem
from stillroom.types import IGNORE, ShardId

FORMAT = "stillroom pictures 1"
Member = Literal["picture", "mask", "extra"]
_MEMBERS: tuple[Member, ...] = ("picture", "mask", "extra")
_COLUMNS = ("key", "height", "width", "inside", *_MEMBERS)
_MAX_OPEN_SHARDS = 128  # file descriptors, and about 80 KB of index each
_ABSENT = (-1, -1, -1)
_BLOCK_BYTES = 512  # of a tar: what lies before a member's payload
_MAX_EXTRA_BYTES = 1 << 20
_LARGEST = 1 << 62
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """What `dataset.json` says of a shard: size in bytes, digests of files, keys and pictures."""

    split: str
    number: int
    rows: int
    size: int
    sha256: str
    index_sha256: str
    pictures: str

    def __post_init__(self) -> None:
        numbers = (self.number, self.rows, self.size)
        digests = (self.sha256, self.index_sha256, self.pictures)
        if not (
            self.split in ("train", "val")
            and all(type(number) is int and 0 <= number < _LARGEST for number in numbers)
            and self.number < 10**6
            and all(isinstance(text, str) and _SHA256.fullmatch(text) for text in digests)
        ):
            raise ValueError(f"no such shard: {self}")

    @property
    def id(self) -> ShardId:
        return ShardId(self.split, self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture as packed; `inside` is x0, y0, x1, y1 in pixels: all that is no padding."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"] | None  # 255 = ignore; None where unlabelled
    inside: tuple[int, int, int, int]
    extra: dict[str, Any] = field(default_factory=dict)
    box: tuple[float, float, float, float] | None = None  # of the row's region, pixels


class PictureShard:
    """An open shard, safe to read from many threads; closed with the last reference to it."""

    def __init__(self, folder: Path, info: ShardInfo, geometry: tuple[int, int] | None) -> None:
        """Open and check; raises DamageError where tar or index are not those of `dataset.json`.

        `geometry` is the (height, width) of every picture, None where each has its own.
        """
        self.info = info
        self.path = folder / f"{info.id}.tar"
        rows = _read_index(folder / f"{info.id}.json", info, geometry)
        self.keys: tuple[str, ...] = tuple(rows["key"])
        self._sizes = list(zip(rows["height"], rows["width"], strict=True))
        self._inside = [tuple(box) for box in rows["inside"]]
        self._spans = {
            member: np.array([span or _ABSENT for span in rows[member]], np.int64)
            for member in _MEMBERS
        }
        try:
            with open_regular(self.path) as file:
                self._descriptor = os.dup(file.fileno())
        except FileNotFoundError:
            raise DamageError(f"{self.path} is missing", fix=_fix(folder)) from None
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)
        if (size := os.fstat(self._descriptor).st_size) != info.size:
            self.close()
            raise DamageError(
                f"{self.path} has the wrong size", found=size, wanted=info.size, fix=_fix(folder)
            )

    def __len__(self) -> int:
        return len(self.keys)

    def __enter__(self) -> "PictureShard":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return not self._finalizer.alive

    def close(self) -> None:
        """Give the file back, for everybody who shares this shard; no read may be under way."""
        self._finalizer()

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {key: i for i, key in enumerate(self.keys)}

    def index(self, key: str) -> int:
        """Return the number of a picture; raises KeyError where the shard has none of this key."""
        return self._numbers[key]

    def size(self, i: int) -> tuple[int, int]:
        """Return height and width of a picture, pixels."""
        return self._sizes[i]

    def has_mask(self, i: int) -> bool:
        return bool(self._spans["mask"][i, 0] >= 0)

    def read_bytes(self, i: int, member: Member = "picture") -> bytes:
        """Return a member as it lies in the tar; DamageError names shard, key and offset."""
        assert not self.closed, f"{self.path} is closed"
        offset, size, crc = (int(number) for number in self._spans[member][i])
        assert offset >= 0, f"{self.keys[i]} has no {member}"
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size or (found := google_crc32c.value(data)) != crc:
            short = len(data) != size
            raise DamageError(
                f"{self.path}: the {member} of {self.keys[i]} at byte {offset} is damaged",
                found=f"{len(data)} bytes" if short else f"crc32c {found:08x}",
                wanted=f"{size} bytes" if short else f"crc32c {crc:08x}",
                fix=_fix(self.path.parent),
            )
        return data

    def read(self, i: int, labels: bool = True) -> Picture:
        """Return row `i` decoded, with its mask if wanted and there; raises DamageError."""
        return Picture(
            key=self.keys[i],
            image=self._pixels(i, "picture", ("RGB",)),
            mask=self._pixels(i, "mask", ("L", "P")) if labels and self.has_mask(i) else None,
            inside=self._inside[i],
            extra=self.extra(i),
        )

    def extra(self, i: int) -> dict[str, Any]:
        """Return what a source had to say of a picture besides its pixels; raises DamageError."""
        if self._spans["extra"][i, 0] < 0:
            return {}
        try:
            extra = json.loads(self.read_bytes(i, "extra"))
        except (ValueError, RecursionError) as error:
            extra = error
        if not isinstance(extra, dict):
            raise DamageError(
                f"{self.path}: what {self.keys[i]} has to say is no object", found=f"{extra!r:.80}"
            )
        return extra

    def _pixels(self, i: int, member: Member, modes: tuple[str, ...]) -> UInt8[np.ndarray, "..."]:
        data = self.read_bytes(i, member)
        try:
            return decode_stored(data, self._sizes[i], modes)
        except Exception as error:  # what decoders raise on bad bytes cannot be listed
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system refused something: no fault of the bytes
            raise DamageError(
                f"{self.path}: the {member} of {self.keys[i]} cannot be decoded", found=error
            ) from None


class PictureSet:
    """A packed data set: what is in it, and its shards."""

    def __init__(self, path: Path, body: dict[str, Any]) -> None:
        """Take over a checked `dataset.json`; use `open_pictures`."""
        geometry = body["geometry"]
        self.path = path
        self.classes: tuple[str, ...] = tuple(body["classes"])
        self.palette: tuple[tuple[int, int, int], ...] = tuple(map(tuple, body["palette"]))
        self.geometry: tuple[int, int] | None = (
            None if geometry is None else (geometry["height"], geometry["width"])
        )
        self.fit: str | None = None if geometry is None else geometry["fit"]
        self.shards: tuple[ShardInfo, ...] = tuple(ShardInfo(**entry) for entry in body["shards"])
        self.digest: str = body["digest"]
        self._by_id = {info.id: info for info in self.shards}
        self._check()
        self._open: OrderedDict[ShardId, PictureShard] = OrderedDict()
        self._lock = threading.Lock()

    def _check(self) -> None:
        """Raise ValueError for what docs/format.md does not allow; shards check their own."""
        colours = [*itertools.chain(*self.palette)]
        size = self.geometry or (1, 1)
        if not (
            len(self.classes) <= IGNORE
            and all(type(name) is str for name in self.classes)
            and all(len(colour) == 3 for colour in self.palette)
            and len(self.palette) == len(self.classes)
            and all(type(value) is int and 0 <= value <= 255 for value in colours)
            and all(type(side) is int and 1 <= side <= MAX_SIDE_PX for side in size)
            and self.fit in (None, "stretch", "letterbox")
        ):
            raise ValueError("classes, palette or geometry are impossible")
        ids = [info.id for info in self.shards]
        if not ids or ids != sorted(set(ids)):
            raise ValueError("shards are not in order, each once, at least one")

    def shard_ids(self, split: str | None = None) -> tuple[ShardId, ...]:
        """Return the shards of a split, or of all splits, in order."""
        return tuple(info.id for info in self.shards if split in (None, info.split))

    def open(self, shard: ShardId) -> PictureShard:
        """Return an open shard, the same one while it is among the last 128; raises DamageError."""
        info = self._by_id[shard]
        with self._lock:
            opened = self._open.pop(shard, None)
            if opened is None or opened.closed:
                opened = PictureShard(self.path, info, self.geometry)
            self._open[shard] = opened
            if len(self._open) > _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)  # closed with the last reference to it
        return opened

    def close(self) -> None:
        """Close every shard that is still open here."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


def open_pictures(path: Path | str) -> PictureSet:
    """Open a packed data set; raises UserError where there is none, DamageError on bad bytes."""
    path = Path(path)
    file = path / "dataset.json"
    if not file.is_file():
        raise UserError(
            f"{path} is not a finished set of picture shards",
            found="no such folder" if not path.is_dir() else "a folder without dataset.json",
            fix=f"python tools/make_shards.py SOURCE --out {path}",
        )
    body = read_json(file)
    if body.get("format") != FORMAT:
        raise UserError(f"{file} has another format", found=body.get("format"), wanted=FORMAT)
    try:
        pictures = PictureSet(path, body)
    except (KeyError, TypeError, ValueError) as error:
        raise DamageError(
            f"{file} is malformed", found=f"{type(error).__name__}: {error}"
        ) from None
    if pictures.digest != set_digest(pictures.shards):
        raise DamageError(f"{file}: the digest is not that of its shards", fix=_fix(path))
    return pictures


def pictures_digest(rows: Iterable[tuple[str, bytes]]) -> str:
    """Return the digest of (key, sha256 of the picture's bytes) pairs; masks have no part in it."""
    total = hashlib.sha256()
    for key, sha in rows:
        total.update(key.encode() + b"\0" + sha)
    return total.hexdigest()


def set_digest(shards: Iterable[ShardInfo]) -> str:
    """Return the data set's digest."""
    lines = (f"{info.id} {info.rows} {info.pictures}\n" for info in shards)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_index(
    path: Path, info: ShardInfo, geometry: tuple[int, int] | None
) -> dict[str, list[Any]]:
    """Return the columns of a shard's index, every number in them checked."""
    try:
        body = read_json(path)
    except FileNotFoundError:
        raise DamageError(f"{path} is missing", fix=_fix(path.parent)) from None
    if (found := json_digest(body)) != info.index_sha256:
        raise DamageError(
            f"{path} is not the index that dataset.json names",
            found=found,
            wanted=info.index_sha256,
            fix=_fix(path.parent),
        )
    try:
        rows = {name: body["rows"][name] for name in _COLUMNS}
        _check_index(body, rows, info, geometry)
    except (KeyError, TypeError, ValueError) as error:
        raise DamageError(
            f"{path} is malformed", found=f"{type(error).__name__}: {error}"
        ) from None
    return rows


def _check_index(
    body: dict[str, Any],
    rows: dict[str, list[Any]],
    info: ShardInfo,
    geometry: tuple[int, int] | None,
) -> None:
    stated = (body["format"], body["split"], body["number"], *map(len, rows.values()))
    if stated != (FORMAT, info.split, info.number, *[info.rows] * len(rows)):
        raise ValueError(f"it says {stated!r:.200}")
    if rows["key"] != sorted(set(rows["key"])) or any(map(key_problem, rows["key"])):
        raise ValueError("keys are not legal, sorted and unique")
    for height, width, inside in zip(rows["height"], rows["width"], rows["inside"], strict=True):
        x0, y0, x1, y1 = inside
        whole = all(type(number) is int for number in (height, width, *inside))
        if not (whole and 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"a picture of {height}x{width} pixels with {inside!r:.80} inside")
        if height * width > MAX_PIXELS or geometry not in (None, (height, width)):
            raise ValueError(f"a picture of {height}x{width} pixels, all being {geometry}")
    if None in rows["picture"]:
        raise ValueError("a row without a picture")
    _check_spans(rows, info.size)


def _check_spans(rows: dict[str, list[Any]], file_size: int) -> None:
    """Members lie in the order of rows, each behind a header, and none is larger than it can be."""
    end = 0
    for spans in zip(*(rows[name] for name in _MEMBERS), strict=True):
        for name, span in zip(_MEMBERS, spans, strict=True):
            if span is None:
                continue
            offset, size, crc = span
            if not all(type(number) is int and 0 <= number < _LARGEST for number in span):
                raise ValueError(f"no member: {span!r:.80}")
            if offset < end + _BLOCK_BYTES or offset + size > file_size or crc >= 2**32:
                raise ValueError(f"a member outside the tar or its place in it: {span}")
            if size > (_MAX_EXTRA_BYTES if name == "extra" else MAX_FILE_BYTES):
                raise ValueError(f"a {name} of {size} bytes")
            end = offset + size


def _fix(folder: Path) -> str:
    return f"make {folder} again: python tools/make_shards.py SOURCE --out ANOTHER_FOLDER"
