"""Writes one shard aside, row by row, and publishes it whole.

The folder's final name means that it is finished. Body, fsync of files, `shard.json`, fsync of
every folder, read-back of everything, rename, fsync of the parent. The first writer wins. Rows may
be compressed in any threads; the files are the same. Memory: one row and its compressed frame. A
killed writer leaves a folder in `tmp/`, which nobody reads.
"""

import math
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import astuple

from stillroom.cache.body import Spans, StoredFile
from stillroom.cache.faults import reach
from stillroom.cache.frames import crc32c, encode_frame, is_finite, sync_file
from stillroom.cache.identity import FORMAT
from stillroom.cache.row_table import row_columns, row_order
from stillroom.cache.scrub import scrub_folder
from stillroom.cache.shard_index import FILE, ShardIndex, ShardSpec, Statistics
from stillroom.errors import DamageError, FailureError, UserError
from stillroom.jsonfile import sync_folder, write_json
from stillroom.types import Row, RowStatistics


class Frame(NamedTuple):
    """A part of a row as it is stored; `raw_crc` is the crc32c of what was compressed."""

    data: bytes
    crc: int
    raw_crc: int


class ShardWriter:
    """A context manager: `append` all rows in order, then `publish`; otherwise nothing remains."""

    def __init__(
        self,
        cache_path: Path,
        spec: ShardSpec,
        publish: Callable[[Path, str], bool],
        *,
        level: int = 1,
    ) -> None:
        self._spec, self._publish, self._level = spec, publish, level
        self._parts = {part.name: part for part in spec.parts}
        self._rows: list[Row] = []
        self._pixels: list[int] = []
        self._spans = {name: Spans(offset=[], size=[], crc32c=[]) for name in self._parts}
        self._raw_crcs: dict[str, list[int]] = {name: [] for name in self._parts}
        self._statistics = {
            name: Statistics(min=[], max=[], finite=[], confidence=[], error=[])
            for name in spec.kinds
        }
        self._folder = cache_path / "tmp" / f"{spec.folder}-{_unique()}"

    def __enter__(self) -> "ShardWriter":
        self._folder.mkdir(parents=True)
        reach("folder-made")
        try:
            spec = self._spec
            self._body = spec.body.create(self._folder, spec.parts, spec.num_rows)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._body.abort()
        shutil.rmtree(self._folder, ignore_errors=True)  # what stays in `tmp/` nobody reads

    def append(
        self,
        row: Row,
        parts: dict[str, np.ndarray],
        statistics: dict[str, RowStatistics],
        pixels: int,
    ) -> None:
        """Compress and write one row: `compress`, then `append_frames`."""
        self.append_frames(row, self.compress(row, parts), statistics, pixels)

    def compress(self, row: Row, parts: dict[str, np.ndarray]) -> dict[str, Frame]:
        """Compress one row, in whichever thread and order.

        `parts` is `<target>.<part>` -> array without a batch axis. Raises UserError for values that
        are not finite.
        """
        assert parts.keys() == self._parts.keys(), sorted(parts)
        return {name: self._compress_part(row, name, parts[name]) for name in self._parts}

    def append_frames(
        self,
        row: Row,
        frames: dict[str, Frame],
        statistics: dict[str, RowStatistics],
        pixels: int,
    ) -> None:
        """Write one row, of which `statistics` are per target and `pixels` the crc32c of the
        picture as the teachers were shown it. Raises UserError for values that are not finite.
        """
        assert not self._rows or row_order(self._rows[-1]) < row_order(row), "rows come in order"
        assert len(self._rows) < self._spec.num_rows, "more rows than the identity says"
        assert statistics.keys() == self._statistics.keys(), sorted(statistics)
        for name, figures in statistics.items():
            assert (figures.confidence is not None) == (self._spec.kinds[name] == "logits"), name
            require_finite(row, name, figures)
            for column, figure in zip(astuple(self._statistics[name]), figures, strict=True):
                column.append(figure)
        for name, frame in frames.items():
            spans = self._spans[name]
            spans.offset.append(self._body.append(row, name, frame.data, frame.crc))
            spans.size.append(len(frame.data))
            spans.crc32c.append(frame.crc)
            self._raw_crcs[name].append(frame.raw_crc)
        self._rows.append(row)
        self._pixels.append(pixels)
        reach("row-appended")

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows so far, compressed."""
        return sum(sum(spans.size) for spans in self._spans.values())

    def publish(self, provenance: dict[str, Any]) -> bool:
        """Make the shard durable, read it back, name it; False where another writer was first.

        Raises FailureError if rows are missing, DamageError if it is read back differently.
        """
        if len(self._rows) != self._spec.num_rows:
            raise FailureError(
                f"shard {self._spec.shard_id} is not whole",
                found=f"{len(self._rows)} rows",
                wanted=f"{self._spec.num_rows} rows",
            )
        files = self._body.finish()
        reach("body-finished")
        for name in files:
            sync_file(self._folder / name)
        reach("files-synced")
        self._write_shard_index(files, provenance)
        reach("shard-json-written")
        for folder, _, _ in os.walk(self._folder, topdown=False):
            sync_folder(Path(folder))
        reach("folders-synced")
        problems = scrub_folder(self._folder, self._spec, self._raw_crcs)
        if problems:
            raise DamageError(
                f"shard {self._spec.shard_id} was not read back as it was written: {problems[0]}",
                found=f"{len(problems)} problems",
                fix="check the disk and its free space",
            )
        reach("read-back")
        return self._publish(self._folder, self._spec.folder)

    def _compress_part(self, row: Row, name: str, value: np.ndarray) -> Frame:
        part = self._parts[name]
        assert value.shape == part.shape and value.dtype == np.dtype(part.dtype), name
        value = np.ascontiguousarray(value, part.stored)
        if value.dtype.kind == "f" and not is_finite(value):
            raise _not_finite(row, name, "NaN or infinity")
        data = encode_frame(value, self._level)
        return Frame(data, crc32c(data), crc32c(value))

    def _write_shard_index(self, files: dict[str, StoredFile], provenance: dict[str, Any]) -> None:
        spec = self._spec
        shard_index = ShardIndex(
            format=FORMAT,
            fingerprint=spec.fingerprint,
            codecs_sha256=spec.codecs_sha256,
            split=spec.shard_id.split,
            number=spec.shard_id.number,
            columns=row_columns(self._rows, self._pixels),
            spans=self._spans,
            files=files,
            statistics=self._statistics,
            provenance=provenance,
        )
        write_json(self._folder / FILE, shard_index)


def require_finite(row: Row, name: str, statistics: RowStatistics) -> None:
    """Raise UserError, with the picture's key, where a target's values are not all finite."""
    known = [figure for figure in statistics if figure is not None]
    if not (all(map(math.isfinite, known)) and statistics.finite == 1):
        raise _not_finite(row, name, ", ".join(map(str, statistics)))


def _not_finite(row: Row, name: str, found: str) -> UserError:
    return UserError(
        f"the target {name} of {row.key} is not finite",
        found=found,
        wanted="finite values only",
        fix="check the teacher's weights and preprocessing",
    )


def this_host() -> str:
    """This host's name as it stands in the names of temporary folders: without `-`."""
    return re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname())


def _unique() -> str:
    """A name that no other writer has, and that tells whose it is."""
    return f"{this_host()}-{os.getpid()}-{os.urandom(4).hex()}"
