"""`shard.json`: what a shard must be, what its file says, and the check of one against the other.

Everything that a reader later allocates or seeks to passes through here.
"""

import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from stillroom.cache.body import Body, Part, Spans
from stillroom.cache.identity import FORMAT
from stillroom.errors import DamageError
from stillroom.jsonfile import digest, read_json
from stillroom.types import KEY, Kind, Row, ShardId, View

FILE = "shard.json"
COLUMNS = ("min", "max", "finite", "confidence")  # of the statistics, in the order of Figures
Statistics = dict[str, dict[str, list[Any]]]  # per target and column, one number (or None) a row
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST = 1 << 62
_MAX_PIXELS = 100_000_000  # of a source's picture, and so of its sides
MAX_METADATA_BYTES = 1 << 20  # of a file that holds no rows: a zarr.json


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSpec:
    """What the identity says of one shard, before anything of it is read."""

    shard_id: ShardId
    fingerprint: str
    codecs_sha256: str
    num_rows: int
    num_views: int
    kinds: dict[str, Kind]  # per target
    parts: tuple[Part, ...]
    body: Body

    @property
    def folder(self) -> str:
        """The name of the published folder."""
        return f"{self.shard_id}{self.body.suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """The checked content of a `shard.json`."""

    rows: tuple[Row, ...]
    spans: dict[str, Spans]  # per part
    files: dict[str, tuple[int, str]]  # size and sha256
    statistics: Statistics
    provenance: dict[str, Any]
    sha256: str  # of shard.json


def row_order(row: Row) -> tuple[str, int, int]:
    """Rows are ordered by key, region (None first), view number."""
    return row.key, -1 if row.region is None else row.region, row.view.number


def shard_index_body(spec: ShardSpec, shard_index: ShardIndex) -> dict[str, Any]:
    """Return the body of `shard.json`."""
    views = [row.view for row in shard_index.rows]
    return {
        "format": FORMAT,
        "fingerprint": spec.fingerprint,
        "codecs_sha256": spec.codecs_sha256,
        "split": spec.shard_id.split,
        "number": spec.shard_id.number,
        "rows": {
            "key": [row.key for row in shard_index.rows],
            "region": [row.region for row in shard_index.rows],
            "view": [[v.number, v.x0, v.y0, v.x1, v.y1, int(v.mirrored)] for v in views],
        },
        "parts": {
            name: {"offset": span.offset, "size": span.size, "crc32c": span.crc32c}
            for name, span in shard_index.spans.items()
        },
        "files": {
            name: {"size": size, "sha256": sha256}
            for name, (size, sha256) in shard_index.files.items()
        },
        "statistics": shard_index.statistics,
        "provenance": shard_index.provenance,
    }


def read_shard_index(folder: Path, spec: ShardSpec) -> ShardIndex:
    """Read and check a shard's `shard.json`; whatever is wrong with it is a DamageError."""
    path = folder / FILE
    try:
        body = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DamageError(f"shard {spec.shard_id}: there is no {path}") from None
    stated = {
        "format": FORMAT,
        "fingerprint": spec.fingerprint,
        "codecs_sha256": spec.codecs_sha256,
        "split": spec.shard_id.split,
        "number": spec.shard_id.number,
    }
    for name, wanted in stated.items():
        if body.get(name) != wanted:
            raise DamageError(
                f"{path} belongs to another shard or another cache: {name} differs",
                found=body.get(name),
                wanted=f"{wanted} (codecs.safetensors)" if name == "codecs_sha256" else wanted,
            )
    try:
        return _checked(body, spec)
    except (_Bad, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{path} is not what this cache needs: {error!r}") from None


def check_files(folder: Path, spec: ShardSpec, shard_index: ShardIndex) -> None:
    """Compare the size of every file with `shard.json`; raises DamageError."""
    for name, (size, _) in shard_index.files.items():
        path = folder / name
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise DamageError(f"shard {spec.shard_id}: {path} is missing") from None
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            raise DamageError(
                f"shard {spec.shard_id}: {path} has another size than was written",
                found=f"{found.st_size} bytes" if stat.S_ISREG(found.st_mode) else "no file",
                wanted=f"{size} bytes",
            )


class _Bad(Exception):
    pass


def _checked(body: dict[str, Any], spec: ShardSpec) -> ShardIndex:
    rows = _rows(body["rows"], spec)
    files = {name: _file(entry) for name, entry in body["files"].items()}
    if files.keys() != spec.body.files(spec.parts):
        raise _Bad(f"files are {sorted(files)}")
    bodies = {spec.body.file_of(part) for part in spec.parts}
    if any(size > MAX_METADATA_BYTES for name, (size, _) in files.items() if name not in bodies):
        raise _Bad("a file of metadata is too large")
    if body["parts"].keys() != {part.name for part in spec.parts}:
        raise _Bad(f"parts are {sorted(body['parts'])}")
    spans = {part.name: _spans(body["parts"][part.name], len(rows), part) for part in spec.parts}
    sizes = {name: size for name, (size, _) in files.items()}
    if (problem := spec.body.check_spans(spec.parts, spans, sizes)) is not None:
        raise _Bad(problem)
    if body["statistics"].keys() != spec.kinds.keys():
        raise _Bad(f"statistics are of {sorted(body['statistics'])}")
    statistics = {
        name: _statistics(body["statistics"][name], len(rows), kind)
        for name, kind in spec.kinds.items()
    }
    if not isinstance(body["provenance"], dict):
        raise _Bad("provenance is no object")
    return ShardIndex(
        rows=rows,
        spans=spans,
        files=files,
        statistics=statistics,
        provenance=body["provenance"],
        sha256=digest(body),
    )


def _rows(columns: dict[str, Any], spec: ShardSpec) -> tuple[Row, ...]:
    num_rows = spec.num_rows
    keys = _column(columns["key"], num_rows, _is_key)
    regions = _column(columns["region"], num_rows, lambda value: value is None or _is_small(value))
    views = _column(columns["view"], num_rows, _is_view)
    rows = tuple(
        Row(key=key, region=region, view=_view(view))
        for key, region, view in zip(keys, regions, views, strict=True)
    )
    for before, after in pairwise(rows):
        if row_order(before) >= row_order(after):
            raise _Bad(f"rows {before.key} and {after.key} are not in order")
    if any(row.view.number >= spec.num_views for row in rows):
        raise _Bad(f"a view's number is not below {spec.num_views}")
    return rows


def _spans(columns: dict[str, Any], num_rows: int, part: Part) -> Spans:
    spans = Spans(
        offset=_column(columns["offset"], num_rows, _is_count),
        size=_column(columns["size"], num_rows, _is_count),
        crc32c=_column(columns["crc32c"], num_rows, _is_crc),
    )
    largest = part.num_bytes + part.num_bytes // 128 + 1024  # zstd adds less to what it cannot pack
    if max(spans.size) > largest:
        raise _Bad(f"part {part.name}: a frame of {max(spans.size)} bytes, above {largest}")
    return spans


def _statistics(columns: dict[str, Any], num_rows: int, kind: Kind) -> dict[str, list[Any]]:
    confidence = _is_share if kind == "logits" else _is_null
    checks = (_is_number, _is_number, _is_share, confidence)
    return {
        name: _column(columns[name], num_rows, check)
        for name, check in zip(COLUMNS, checks, strict=True)
    }


def _file(entry: dict[str, Any]) -> tuple[int, str]:
    if not _is_count(entry["size"]) or not _SHA256.fullmatch(entry["sha256"]):
        raise _Bad(f"no size and sha256: {entry}")
    return entry["size"], entry["sha256"]


def _column(values: Any, num_rows: int, is_good: Callable[[Any], bool]) -> list[Any]:
    if not isinstance(values, list) or len(values) != num_rows:
        found = len(values) if isinstance(values, list) else type(values).__name__
        raise _Bad(f"a column of {num_rows} values, found {found}")
    for row, value in enumerate(values):
        if not is_good(value):
            raise _Bad(f"row {row} of a column: {value!r:.80}")
    return values


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_small(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_PIXELS


def _is_crc(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 32


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_null(value: Any) -> bool:
    return value is None


def _is_key(value: Any) -> bool:
    if type(value) is not str or len(value) > 200 or "//" in f"/{value}/":
        return False  # the name of a tar's member is relative, and no folder in it is nameless
    return KEY.fullmatch(value) is not None


def _is_view(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 6 and all(map(_is_small, value))):
        return False
    _, x0, y0, x1, y1, mirrored = value
    return x0 < x1 and y0 < y1 and mirrored <= 1


def _view(value: list[int]) -> View:
    number, x0, y0, x1, y1, mirrored = value
    return View(number=number, x0=x0, y0=y0, x1=x1, y1=y1, mirrored=bool(mirrored))
