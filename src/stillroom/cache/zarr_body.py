"""The default body: an ordinary Zarr v3 group.

One array per part, one shard file per array, one chunk per row. zarr writes the arrays' metadata.
The shard files are written here, chunk by chunk: zarr has no partial shard write (a row-wise
assignment rewrites the growing shard, a whole one needs it in memory). Layout: docs/format.md,
section 3.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.cache.body import BodyWriter, Part, StoredFile
from stillroom.cache.faults import reach
from stillroom.cache.frames import HashedFile, crc32c
from stillroom.jsonfile import file_sha256
from stillroom.types import Row

_CRC_BYTES = 4
_METADATA = "zarr.json"


class ZarrBody:
    """Files and spans of a Zarr group; see `stillroom.cache.body.Body`."""

    suffix = ".zarr"

    def create(self, folder: Path, parts: tuple[Part, ...], num_rows: int) -> BodyWriter:
        """Write the metadata of an empty group and open the shard files."""
        return _ZarrWriter(folder, parts, num_rows)

    def file_of(self, part: Part) -> str:
        """`<target>.<part>/c/0/0/0/0`, one 0 per axis."""
        return "/".join([part.name, "c", *["0"] * (1 + len(part.shape))])

    def files(self, parts: tuple[Part, ...]) -> frozenset[str]:
        """The group's metadata, and metadata and shard file of every array."""
        names = [_METADATA]
        for part in parts:
            names += [f"{part.name}/{_METADATA}", self.file_of(part)]
        return frozenset(names)


class _ZarrWriter:
    def __init__(self, folder: Path, parts: tuple[Part, ...], num_rows: int) -> None:
        _write_metadata(folder, parts, num_rows)
        self._folder, self._body, self._parts = folder, ZarrBody(), parts
        self._spans: dict[str, tuple[list[int], list[int]]] = {}
        self._files: dict[str, HashedFile] = {}
        try:
            for part in parts:
                path = folder / self._body.file_of(part)
                path.parent.mkdir(parents=True)
                self._files[part.name] = HashedFile(path)
                self._spans[part.name] = ([], [])
        except BaseException:
            self.abort()
            raise
        reach("body-started")

    def append(self, row: Row, name: str, frame: bytes, crc: int) -> int:
        file, (offsets, sizes) = self._files[name], self._spans[name]
        offset = file.write_frame(frame)
        file.write(struct.pack("<I", crc))
        offsets.append(offset)
        sizes.append(len(frame))
        return offset

    def finish(self) -> dict[str, StoredFile]:
        written = {}
        for part in self._parts:
            file = self._files[part.name]
            file.write(_index(*self._spans[part.name]))
            file.close()
            written[self._body.file_of(part)] = StoredFile(size=file.size, sha256=file.sha256)
        for name in [_METADATA, *[f"{part.name}/{_METADATA}" for part in self._parts]]:
            path = self._folder / name
            written[name] = StoredFile(size=path.stat().st_size, sha256=file_sha256(path))
        return written

    def abort(self) -> None:
        for file in self._files.values():
            file.close()


def _index(offsets: Any, sizes: Any) -> bytes:
    """n pairs (offset, size with the chunk's checksum) and the crc32c of these bytes."""
    pairs = np.empty((len(offsets), 2), "<u8")
    pairs[:, 0] = offsets
    pairs[:, 1] = np.asarray(sizes, "<u8") + np.uint64(_CRC_BYTES)
    data = pairs.tobytes()
    return data + struct.pack("<I", crc32c(data))


def _write_metadata(folder: Path, parts: tuple[Part, ...], num_rows: int) -> None:
    """Let zarr write the zarr.json of each array, and put them all into that of the group.

    A reader then lists the arrays without listing the folder, where `shard.json` lies too. zarr's
    own writer of consolidated metadata warns, so the group's document is written here. It writes
    into memory: on a disk it makes hard links, which not every file system has.
    """
    import zarr  # 0.5 s; readers never need it
    from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    documents: dict[str, Any] = {}  # of zarr's buffers
    group = zarr.create_group(MemoryStore(documents), zarr_format=3)
    names = dimension_names(parts)
    for part in parts:
        group.create_array(
            part.name,
            shape=(num_rows, *part.shape),
            chunks=(1, *part.shape),
            shards=(num_rows, *part.shape),
            dtype=np.dtype(part.dtype),
            serializer=BytesCodec(endian="little"),
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            fill_value=np.nan if np.dtype(part.dtype).kind == "f" else 0,
            dimension_names=names[part.name],
            config={"write_empty_chunks": True},
        )
    texts = {name: buffer.to_bytes() for name, buffer in documents.items()}
    arrays = {part.name: json.loads(texts[f"{part.name}/{_METADATA}"]) for part in parts}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    document = json.loads(texts[_METADATA]) | {"consolidated_metadata": consolidated}
    texts[_METADATA] = json.dumps(document, indent=2).encode()
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text)


def dimension_names(parts: tuple[Part, ...]) -> dict[str, tuple[str, ...]]:
    """Return per part `row` and `<target>_c`, `_y`, `_x`, so that a target's parts share axes.

    A part of another rank, or whose axis has another length, has `<array>_<number of the axis>`:
    readers refuse one name with two lengths.
    """
    lengths: dict[str, int] = {}
    names: dict[str, tuple[str, ...]] = {}
    for part in parts:
        target, rank = part.name.partition(".")[0], len(part.shape)
        wanted = [f"{target}_{axis}" for axis in "cyx"] if rank == 3 else [""] * rank
        own = [f"{part.name}_{number}" for number in range(rank)]
        names[part.name] = (
            "row",
            *(
                shared if shared and lengths.setdefault(shared, length) == length else other
                for shared, other, length in zip(wanted, own, part.shape, strict=True)
            ),
        )
    return names
