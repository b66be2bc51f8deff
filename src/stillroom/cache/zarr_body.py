"""The default body: an ordinary Zarr v3 group.

One array per part, one shard file per array, one chunk per row. zarr writes the metadata. The shard
files are written here, chunk by chunk: zarr has no partial shard write (a row-wise assignment
rewrites the growing shard, a whole one needs it in memory). Layout: docs/format.md, section 3.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.cache.body import BodyWriter, Part, Spans
from stillroom.cache.faults import reach
from stillroom.cache.frames import HashedFile, crc32c
from stillroom.jsonfile import file_sha256
from stillroom.types import Row

_CRC_BYTES = 4
_METADATA = "zarr.json"
_GROUP = {"zarr_format": 3, "node_type": "group"}


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

    def check_spans(
        self, parts: tuple[Part, ...], spans: dict[str, Spans], sizes: dict[str, int]
    ) -> str | None:
        """Chunks lie in row order without gaps, then comes the index, then nothing."""
        for part in parts:
            problem = _spans_problem(spans[part.name], sizes[self.file_of(part)])
            if problem is not None:
                return f"part {part.name}: {problem}"
        return None

    def problems(
        self, folder: Path, parts: tuple[Part, ...], rows: tuple[Row, ...], spans: dict[str, Spans]
    ) -> list[str]:
        """Compare zarr's index and metadata with what each part must have."""
        found = [self._part_problems(folder, part, spans[part.name]) for part in parts]
        return [*_group_problems(folder), *(text for problems in found for text in problems)]

    def _part_problems(self, folder: Path, part: Part, spans: Spans) -> list[str]:
        wanted = _index(spans.offset, spans.size)
        found = _tail(folder / self.file_of(part), len(wanted))
        problems = []
        if found != wanted:
            problems.append(f"{self.file_of(part)}: zarr's index differs from shard.json")
        try:
            found_text = _essence(json.loads((folder / part.name / _METADATA).read_bytes()))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return [*problems, f"{part.name}/{_METADATA}: not the metadata of an array ({error!r})"]
        if found_text != _wanted_essence(part, len(spans.offset)):
            problems.append(f"{part.name}/{_METADATA}: another shape, type or codec than ours")
        return problems


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

    def finish(self) -> dict[str, tuple[int, str]]:
        written = {}
        for part in self._parts:
            file = self._files[part.name]
            file.write(_index(*self._spans[part.name]))
            file.close()
            written[self._body.file_of(part)] = (file.size, file.sha256)
        for name in [_METADATA, *[f"{part.name}/{_METADATA}" for part in self._parts]]:
            path = self._folder / name
            written[name] = (path.stat().st_size, file_sha256(path))
        return written

    def abort(self) -> None:
        for file in self._files.values():
            file.close()


def _spans_problem(spans: Spans, file_size: int) -> str | None:
    end = 0
    for row, (offset, size) in enumerate(zip(spans.offset, spans.size, strict=True)):
        if offset != end:
            return f"row {row} begins at {offset}, not at {end}"
        end = offset + size + _CRC_BYTES
    end += 16 * len(spans.offset) + _CRC_BYTES
    return None if end == file_size else f"chunks and index end at {end} of {file_size} bytes"


def _index(offsets: Any, sizes: Any) -> bytes:
    """n pairs (offset, size with the chunk's checksum) and the crc32c of these bytes."""
    pairs = np.empty((len(offsets), 2), "<u8")
    pairs[:, 0] = offsets
    pairs[:, 1] = np.asarray(sizes, "<u8") + np.uint64(_CRC_BYTES)
    data = pairs.tobytes()
    return data + struct.pack("<I", crc32c(data))


def _group_problems(folder: Path) -> list[str]:
    """Say where the group's own metadata is more than that of a group: it may list other arrays."""
    try:
        document = json.loads((folder / _METADATA).read_bytes())
        rest = {name: value for name, value in document.items() if value and name not in _GROUP}
        is_ours = all(document[name] == value for name, value in _GROUP.items()) and not rest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [f"{_METADATA}: not the metadata of a group ({error!r:.200})"]
    return [] if is_ours else [f"{_METADATA}: more than a group without attributes: {rest!r:.200}"]


def _tail(path: Path, num_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - num_bytes))
        return file.read(num_bytes)


def _write_metadata(folder: Path, parts: tuple[Part, ...], num_rows: int) -> None:
    """Let zarr write the zarr.json of the group and of each array; no chunk is written."""
    import zarr  # 0.5 s; readers never need it
    from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

    group = zarr.create_group(folder, zarr_format=3)
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
            config={"write_empty_chunks": True},
        )


def _essence(document: dict[str, Any]) -> str:
    """What decides how an array is decoded, as text; the zstd level does not."""
    (sharding,) = document["codecs"]
    inner = sharding["configuration"]
    kept = {
        "shape": document["shape"],
        "data_type": document["data_type"],
        "chunk_grid": document["chunk_grid"],
        "chunk_key_encoding": document["chunk_key_encoding"],
        "fill_value": document["fill_value"],
        "storage_transformers": document.get("storage_transformers", []),
        "outer": sharding["name"],
        "chunk_shape": inner["chunk_shape"],
        "codecs": [_without_level(codec) for codec in inner["codecs"]],
        "index_codecs": [_without_level(codec) for codec in inner["index_codecs"]],
        "index_location": inner["index_location"],
    }
    return json.dumps(kept, sort_keys=True)


def _without_level(codec: dict[str, Any]) -> list[Any]:
    return [codec["name"], {} if codec["name"] == "zstd" else codec.get("configuration", {})]


def _wanted_essence(part: Part, num_rows: int) -> str:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    serializer = little if part.stored.itemsize > 1 else {"name": "bytes"}
    checksum = {"name": "crc32c"}
    inner = {
        "chunk_shape": [1, *part.shape],
        "codecs": [serializer, {"name": "zstd"}, checksum],
        "index_codecs": [little, checksum],
        "index_location": "end",
    }
    grid = {"name": "regular", "configuration": {"chunk_shape": [num_rows, *part.shape]}}
    document = {
        "shape": [num_rows, *part.shape],
        "data_type": part.dtype,
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if part.stored.kind == "f" else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
    }
    return _essence(document)
