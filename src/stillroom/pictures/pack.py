"""The writer of picture shards: WebDataset tars, equal bytes for equal pictures.

Everything is written into a hidden folder beside the final one, flushed, read back and renamed.
Memory: the encoded pictures of one shard, and its index.
"""

import hashlib
import io
import itertools
import os
import shutil
import socket
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import google_crc32c

from stillroom.errors import FailureError, UserError
from stillroom.jsonfile import digest, file_sha256, rename, sync_folder, write_json
from stillroom.pictures.dataset import FORMAT, ShardInfo, open_pictures, pictures_digest, set_digest
from stillroom.pictures.labels import palette_of
from stillroom.pictures.prepare import Geometry, PictureFormat, Prepared
from stillroom.types import IGNORE, ShardId

_Span = tuple[int, int, int]  # offset, size, crc32c


def pack(
    out: Path,
    splits: dict[str, Iterable[Prepared]],
    *,
    classes: tuple[str, ...],
    geometry: Geometry | None,
    picture_format: PictureFormat,
    shard_rows: int,
) -> tuple[ShardInfo, ...]:
    """Write a data set to the new folder `out`; of each split's pictures, as many as a shard has
    rows lie in memory at a time, encoded, to be ordered by key.

    Returns its shards. Raises UserError where `out` exists or a split is empty, FailureError where
    the disk fails.
    """
    refuse_existing(out)
    with _aside(out) as folder:
        shards = tuple(
            info
            for split, rows in sorted(splits.items())
            for info in _write_split(folder, split, rows, shard_rows, picture_format)
        )
        body = {
            "format": FORMAT,
            "classes": classes,
            "palette": palette_of(len(classes)),
            "ignore": IGNORE,
            "geometry": geometry,
            "picture_format": picture_format,
            "shards": shards,
            "digest": set_digest(shards),
        }
        write_json(folder / "dataset.json", body)
        _read_back(folder)
    return shards


def refuse_existing(out: Path) -> None:
    """Raise UserError where `out` is already there, finished or not."""
    if os.path.lexists(out):
        finished = (out / "dataset.json").is_file()
        raise UserError(
            f"{out} exists already",
            found="finished picture shards" if finished else "something else",
            fix="give another --out" + f", or remove {out}" * finished,
        )


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """Give a hidden folder to fill; it is renamed to `out` if all goes well, else removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    name = f".{out.name}.{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}.tmp"
    folder = out.parent / name
    folder.mkdir()
    try:
        yield folder
        sync_folder(folder)
        refuse_existing(out)
        rename(folder, out)
        sync_folder(out.parent)
    except OSError as error:
        raise FailureError(f"could not write {out}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # nothing is left of it after the rename


def _write_split(
    folder: Path,
    split: str,
    rows: Iterable[Prepared],
    shard_rows: int,
    picture_format: PictureFormat,
) -> Iterator[ShardInfo]:
    rest = iter(rows)
    for number in itertools.count():
        chunk = sorted(itertools.islice(rest, shard_rows), key=attrgetter("key"))
        if not chunk:
            break
        yield _write_shard(folder, ShardId(split, number), chunk, picture_format)
    if number == 0:
        raise UserError(f"no picture is left for the split {split!r}", fix="look at those left out")


def _write_shard(
    folder: Path, shard: ShardId, rows: Iterable[Prepared], picture_format: PictureFormat
) -> ShardInfo:
    path = folder / f"{shard}.tar"
    entries, hashes = [], []
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for row in rows:
                entries.append(_append(tar, row, picture_format))
                hashes.append(hashlib.sha256(row.picture).digest())
        file.flush()
        os.fsync(file.fileno())
    sha256 = file_sha256(path)
    columns = {name: [entry[name] for entry in entries] for name in entries[0]}
    index = {"format": FORMAT, "split": shard.split, "number": shard.number, "rows": columns}
    write_json(folder / f"{shard}.json", index)
    return ShardInfo(
        split=shard.split,
        number=shard.number,
        rows=len(hashes),
        size=path.stat().st_size,
        sha256=sha256,
        index_sha256=digest(index),
        pictures=pictures_digest(zip(columns["key"], hashes, strict=True)),
    )


def _append(tar: tarfile.TarFile, row: Prepared, picture_format: PictureFormat) -> dict[str, Any]:
    """Append the members of one row; return its entries of the index's columns."""
    return {
        "key": row.key,
        "height": row.height,
        "width": row.width,
        "inside": list(row.inside),
        "picture": _add(tar, f"{row.key}.{picture_format}", row.picture),
        "mask": _add(tar, f"{row.key}.mask.png", row.mask),
        "extra": _add(tar, f"{row.key}.json", row.extra),
    }


def _add(tar: tarfile.TarFile, name: str, data: bytes | None) -> _Span | None:
    if data is None:
        return None
    member = tarfile.TarInfo(name)  # mode 0644, times and owners 0, no names
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return tar.offset - padded, len(data), google_crc32c.value(data)


def _read_back(folder: Path) -> None:
    """Read every member back; raises DamageError where the disk kept something else."""
    pictures = open_pictures(folder)
    for shard in pictures.shard_ids():
        opened = pictures.open(shard)
        for i in range(len(opened)):
            opened.read_bytes(i, "picture")
            if opened.has_mask(i):
                opened.read_bytes(i, "mask")
