"""The reader of picture shards: any picture by number, every byte checked on every read.

A read is one `pread` and one decode per member (docs/format.md section 2). Opened shards are shared
and may be read from many threads; nothing here writes.
"""

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import google_crc32c
import msgspec
import numpy as np
from jaxtyping import UInt8

from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import (
    Count,
    Crc32c,
    Declared,
    Sha256,
    open_regular,
    read_json,
    read_json_and_digest,
)
from stillroom.pictures.boxes import boxes_of
from stillroom.pictures.decode import MAX_FILE_BYTES, MAX_PIXELS, decode_stored
from stillroom.pictures.prepare import Fit, Geometry, PictureFormat
from stillroom.random_access import Fetch, RandomAccessFile, read_fetched
from stillroom.remote.mirror import Mirror, RemoteFile, mirror_of
from stillroom.types import IGNORE, Key, ShardId, ShardNumber, Split

FORMAT = "stillroom pictures 1"
Member = Literal["picture", "mask", "extra"]

_Pixels = Annotated[int, msgspec.Meta(ge=0, le=MAX_PIXELS)]
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
_PictureBytes = Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_BYTES)]
_ExtraBytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
_PictureSpan = tuple[Count, _PictureBytes, Crc32c]  # offset and size in bytes
_NONE = (-1, 0, 0)  # of a member that a row has not


class ShardInfo(Declared, frozen=True):
    """What `dataset.json` says of a shard: size in bytes, digests of files, keys and pictures."""

    split: Split
    number: ShardNumber
    rows: Count
    size: Count
    sha256: Sha256
    index_sha256: Sha256
    pictures: Sha256

    @property
    def id(self) -> ShardId:
        return ShardId(self.split, self.number)


class _Format(msgspec.Struct):
    format: str = "none"


class DataSet(Declared, frozen=True):
    """The content of `dataset.json`."""

    format: str
    classes: Annotated[tuple[str, ...], msgspec.Meta(max_length=IGNORE)]
    palette: tuple[tuple[_Byte, _Byte, _Byte], ...]
    ignore: Literal[255]
    geometry: Geometry | None
    picture_format: PictureFormat
    shards: Annotated[tuple[ShardInfo, ...], msgspec.Meta(min_length=1)]
    digest: Sha256


class _Columns(Declared, frozen=True):
    """One value a row; `inside` is x0, y0, x1, y1 in pixels."""

    key: tuple[Key, ...]
    height: list[_Pixels]
    width: list[_Pixels]
    inside: list[tuple[_Pixels, _Pixels, _Pixels, _Pixels]]
    picture: list[_PictureSpan]
    mask: list[_PictureSpan | None]
    extra: list[tuple[Count, _ExtraBytes, Crc32c] | None]


class PictureIndex(Declared, frozen=True):
    """A shard's index, `<id>.json`."""

    format: str
    split: str
    number: int
    rows: _Columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture as packed, or as a row shows it.

    `inside` is x0, y0, x1, y1 in pixels of the mask: all that is no padding.
    """

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "y x"] | None  # 255 = ignore; None where unlabelled; y x = h w,
    # or, in a row of a region whose labels are read, cells of its box
    inside: tuple[int, int, int, int]
    extra: dict[str, Any] = field(default_factory=dict)
    box: tuple[float, float, float, float] | None = None  # of the row's region, pixels


class PictureShard:
    """A shard, safe to read from many threads: its index in 96 bytes a row and the row's key, and a
    file that is opened when it is read.
    """

    def __init__(
        self,
        folder: Path,
        info: ShardInfo,
        geometry: tuple[int, int] | None,
        mirror: Mirror | None = None,
    ) -> None:
        """Open and check; raises DamageError where tar or index are not those of `dataset.json`.

        `geometry` is the (height, width) of every picture, None where each has its own. Where the
        folder mirrors a store, the index is fetched now and the tar when it is first read.
        """
        self.info = info
        self.path = folder / f"{info.id}.tar"
        index = f"{info.id}.json"
        read = partial(_read_index, folder / index, info, geometry)
        if mirror is None:
            rows = read()
        else:
            whole = partial(mirror.get_json, index, info.index_sha256)
            rows = read_fetched(partial(mirror.fetch, index, lambda: {"": whole()}), read)
        self.keys = rows.key
        self._pixels = np.column_stack((rows.height, rows.width, np.array(rows.inside))).astype(
            np.int32
        )
        self._spans = {
            name: np.array([span or _NONE for span in getattr(rows, name)], np.int64)
            for name in get_args(Member)
        }
        self.fetch = None if mirror is None else _fetcher(mirror, info)
        self._file = RandomAccessFile(self.path, self.fetch)
        if self.fetch is not None:
            return
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise DamageError(f"{self.path} is missing", fix=_fix(folder)) from None
        if size != info.size:
            raise DamageError(
                f"{self.path} has the wrong size", found=size, wanted=info.size, fix=_fix(folder)
            )

    def __len__(self) -> int:
        return len(self.keys)

    def index(self, key: str) -> int:
        """Return the number of a picture; raises KeyError where the shard has none of this key."""
        i = bisect_left(self.keys, key)
        if self.keys[i : i + 1] != (key,):
            raise KeyError(key)
        return i

    def size(self, i: int) -> tuple[int, int]:
        """Return height and width of a picture, pixels."""
        height, width = self._pixels[i, :2].tolist()
        return height, width

    def inside(self, i: int) -> tuple[int, int, int, int]:
        """Return x0, y0, x1, y1 of a picture without its padding, pixels."""
        x0, y0, x1, y1 = self._pixels[i, 2:].tolist()
        return x0, y0, x1, y1

    def has_mask(self, i: int) -> bool:
        return bool(self._spans["mask"][i, 0] >= 0)

    @cached_property
    def num_boxes(self) -> tuple[int, ...]:
        """How many boxes each picture's json names; every json is read for it once."""
        return tuple(len(boxes_of(key, self.extra(i))) for i, key in enumerate(self.keys))

    def num_bytes(self, i: int) -> int:
        """Return how many bytes of the tar hold picture, mask and json of row `i`."""
        return sum(int(spans[i, 1]) for spans in self._spans.values())

    def read_bytes(self, i: int, member: Member = "picture") -> bytes:
        """Return a member as it lies in the tar; DamageError names shard, key and offset."""
        assert self._spans[member][i, 0] >= 0, f"{self.keys[i]} has no {member}"
        return self._file.read(lambda number: self._checked(number, i, member))

    def _checked(self, number: int, i: int, member: Member) -> bytes:
        offset, size, crc = self._spans[member][i].tolist()
        data = os.pread(number, size, offset)
        if len(data) != size or google_crc32c.value(data) != crc:
            raise DamageError(
                f"{self.path}: the {member} of {self.keys[i]} at byte {offset} is damaged",
                found=f"{len(data)} bytes of crc32c {google_crc32c.value(data):08x}",
                wanted=f"{size} bytes of crc32c {crc:08x}",
                fix=_fix(self.path.parent),
            )
        return data

    def read(self, i: int, labels: bool = True) -> Picture:
        """Return row `i` decoded, with its mask if wanted and there; raises DamageError."""
        return Picture(
            key=self.keys[i],
            image=self._decoded(i, "picture", ("RGB",)),
            mask=self.read_mask(i) if labels and self.has_mask(i) else None,
            inside=self.inside(i),
            extra=self.extra(i),
        )

    def read_mask(self, i: int) -> UInt8[np.ndarray, "h w"]:
        """Return the mask of row `i`, which has one; raises DamageError."""
        return self._decoded(i, "mask", ("L", "P"))

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

    def _decoded(self, i: int, member: Member, modes: tuple[str, ...]) -> UInt8[np.ndarray, "..."]:
        data = self.read_bytes(i, member)
        try:
            return decode_stored(data, self.size(i), modes)
        except Exception as error:  # what decoders raise on bad bytes cannot be listed
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system refused something: no fault of the bytes
            raise DamageError(
                f"{self.path}: the {member} of {self.keys[i]} cannot be decoded", found=error
            ) from None


class PictureSet:
    """A packed data set: what is in it, and its shards."""

    def __init__(self, path: Path, body: DataSet) -> None:
        """Take over a checked `dataset.json`; use `open_pictures`."""
        geometry = body.geometry
        size = None if geometry is None else (geometry.height, geometry.width)
        self.path, self.classes, self.palette = path, body.classes, body.palette
        self.geometry: tuple[int, int] | None = size
        self.fit: Fit | None = None if geometry is None else geometry.fit
        self.shards, self.digest = body.shards, body.digest
        infos = {info.id: info for info in self.shards}
        mirror = mirror_of(path)
        self._opened = cache(lambda shard: PictureShard(path, infos[shard], size, mirror))

    def shard_ids(self, split: str | None = None) -> tuple[ShardId, ...]:
        """Return the shards of a split, or of all splits, in order."""
        return tuple(info.id for info in self.shards if split in (None, info.split))

    def num_rows(self, split: str) -> int:
        """Return how many pictures a split has."""
        return sum(info.rows for info in self.shards if info.split == split)

    def open(self, shard: ShardId) -> PictureShard:
        """Return an open shard, always the same one; raises DamageError."""
        return self._opened(shard)


def open_pictures(path: Path | str) -> PictureSet:
    """Open a packed data set; raises UserError where there is none, DamageError on bad bytes."""
    path = Path(path)
    file = path / "dataset.json"
    if (mirror := mirror_of(path)) is not None and not mirror.refresh(file.name):
        raise UserError(f"{mirror.store.url} has no {file.name}: it is no set of picture shards")
    if not file.is_file():
        raise UserError(
            f"{path} is not a finished set of picture shards",
            found="no such folder" if not path.is_dir() else "a folder without dataset.json",
            fix=f"stillroom shards SOURCE --out {path}",
        )
    if (found := read_json(file, _Format).format) != FORMAT:
        raise UserError(f"{file} has another format", found=found, wanted=FORMAT)
    body: DataSet = read_json(file, DataSet)
    if len(body.palette) != len(body.classes):
        raise DamageError(f"{file}: there is not one colour a class", found=len(body.palette))
    ids = [info.id for info in body.shards]
    if ids != sorted(set(ids)):
        raise DamageError(f"{file}: the shards are not in order, each once")
    if body.digest != set_digest(body.shards):
        raise DamageError(f"{file}: the digest is not that of its shards", fix=_fix(path))
    return PictureSet(path, body)


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


def _fetcher(mirror: Mirror, info: ShardInfo) -> Fetch:
    """Return what has a shard's tar here."""
    name = f"{info.id}.tar"
    return partial(mirror.fetch, name, lambda: {"": RemoteFile(name, info.size, info.sha256)})


def _read_index(path: Path, info: ShardInfo, geometry: tuple[int, int] | None) -> _Columns:
    """Return the columns of a shard's index, every number in them checked."""
    try:
        index, found = read_json_and_digest(path, PictureIndex)
    except FileNotFoundError:
        raise DamageError(f"{path} is missing", fix=_fix(path.parent)) from None
    if found != info.index_sha256:
        raise DamageError(
            f"{path} is not the index that dataset.json names",
            found=found,
            wanted=info.index_sha256,
            fix=_fix(path.parent),
        )
    if (problem := _index_problem(index, info, geometry)) is not None:
        raise DamageError(f"{path} is not what a PictureIndex is", found=problem)
    return index.rows


def _index_problem(
    index: PictureIndex, info: ShardInfo, geometry: tuple[int, int] | None
) -> str | None:
    """Say what in an index does not fit its shard, or None."""
    rows = index.rows
    lengths = {len(column) for column in msgspec.structs.astuple(rows)}
    stated = (index.format, index.split, index.number, lengths)
    if stated != (FORMAT, info.split, info.number, {info.rows}):
        return f"it says {stated!r:.200}"
    if list(rows.key) != sorted(set(rows.key)):
        return "keys are not sorted and unique"
    for key, height, width, (x0, y0, x1, y1) in zip(
        rows.key, rows.height, rows.width, rows.inside, strict=True
    ):
        is_inside = x0 < x1 <= width and y0 < y1 <= height
        if not is_inside or height * width > MAX_PIXELS or geometry not in (None, (height, width)):
            return f"{key} has {height}x{width} pixels, {(x0, y0, x1, y1)} of them inside"
    for span in (*rows.picture, *rows.mask, *rows.extra):
        if span is not None and span[0] + span[1] > info.size:
            return f"a member outside the tar: {span}"
    return None


def _fix(folder: Path) -> str:
    return f"make {folder} again: stillroom shards SOURCE --out ANOTHER_FOLDER"
