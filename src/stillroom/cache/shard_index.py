"""`shard.json`: what a shard must be, what its file says, and the check of one against the other.

Everything that a reader later allocates or seeks to passes through here.
"""

import stat
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import msgspec

from stillroom.cache.body import Body, Part, Spans, StoredFile
from stillroom.cache.identity import FORMAT
from stillroom.cache.row_table import RowColumns, RowTable, row_order
from stillroom.errors import DamageError
from stillroom.jsonfile import Declared, read_json, read_json_and_digest
from stillroom.types import Kind, ShardId

FILE = "shard.json"
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_SquaredError = Annotated[float, msgspec.Meta(ge=0)]


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


class Statistics(Declared, frozen=True):
    """Figures of one target per row, of the values before encoding; confidence of logits only.

    `error` is the mean of (decoded - value)^2.
    """

    min: list[float]
    max: list[float]
    finite: list[_Share]
    confidence: list[_Share | None]
    error: list[_SquaredError]


class ShardIndex(Declared, frozen=True):
    """The content of a `shard.json`, as it lies there."""

    format: str
    fingerprint: str
    codecs_sha256: str
    split: str
    number: int
    columns: RowColumns = msgspec.field(name="rows")
    spans: dict[str, Spans] = msgspec.field(name="parts")
    files: dict[str, StoredFile]  # per path inside the folder, all but `shard.json`
    statistics: dict[str, Statistics]  # per target
    provenance: dict[str, Any]


def read_shard_index(folder: Path, spec: ShardSpec) -> tuple[ShardIndex, str]:
    """Return a shard's `shard.json`, checked, and its sha256; raises DamageError."""
    path = folder / FILE
    try:
        shard_index, sha256 = read_json_and_digest(path, ShardIndex)
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
        if (found := getattr(shard_index, name)) != wanted:
            raise DamageError(
                f"{path} belongs to another shard or another cache: {name} differs",
                found=found,
                wanted=f"{wanted} (codecs.safetensors)" if name == "codecs_sha256" else wanted,
            )
    if problem := _row_problem(shard_index, spec) or _file_problem(shard_index, spec):
        raise DamageError(f"{path} is not what this cache needs", found=problem)
    return shard_index, sha256


def stated_by_shards(cache: Path, fingerprint: str) -> tuple[str, str] | None:
    """Return the fingerprint and the codecs' sha256 that the first shard of this cache states.

    Where none is of this cache, what the first one states whose shard.json verifies.
    """
    first = None
    for path in sorted(cache.glob(f"*/{FILE}")):
        try:
            index = read_json(path)
        except (OSError, DamageError):
            continue  # the scrub says what is wrong with it
        stated = str(index.get("fingerprint")), str(index.get("codecs_sha256"))
        if stated[0] == fingerprint:
            return stated
        first = first or stated
    return first


def check_files(folder: Path, spec: ShardSpec, shard_index: ShardIndex) -> None:
    """Compare the size of every file with `shard.json`; raises DamageError."""
    for name, file in shard_index.files.items():
        path = folder / name
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise DamageError(f"shard {spec.shard_id}: {path} is missing") from None
        if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
            raise DamageError(
                f"shard {spec.shard_id}: {path} has another size than was written",
                found=f"{found.st_size} bytes" if stat.S_ISREG(found.st_mode) else "no file",
                wanted=f"{file.size} bytes",
            )


def _row_problem(shard_index: ShardIndex, spec: ShardSpec) -> str | None:
    """Say how columns and rows are not those of this shard, or None."""
    if shard_index.spans.keys() != {part.name for part in spec.parts}:
        return f"parts {sorted(shard_index.spans)}"
    if shard_index.statistics.keys() != spec.kinds.keys():
        return f"statistics of {sorted(shard_index.statistics)}"
    owners = (shard_index.columns, *shard_index.spans.values(), *shard_index.statistics.values())
    lengths = {len(column) for owner in owners for column in msgspec.structs.astuple(owner)}
    if lengths != {spec.num_rows}:
        return f"columns of {sorted(lengths)} values, where there are {spec.num_rows} rows"
    for name, kind in spec.kinds.items():
        if any(
            (v is None) != (kind == "features") for v in shard_index.statistics[name].confidence
        ):
            return f"the confidence of {name}, which are {kind}"
    try:
        rows = tuple(RowTable(shard_index.columns))
    except ValueError as error:
        return str(error)
    for before, after in pairwise(rows):
        if row_order(before) >= row_order(after):
            return f"rows {before.key} and {after.key} are not in order"
    if any(row.view.number >= spec.num_views for row in rows):
        return f"a view's number is not below {spec.num_views}"
    return None


def _file_problem(shard_index: ShardIndex, spec: ShardSpec) -> str | None:
    """Say which frame no file of this body can hold, or None."""
    if shard_index.files.keys() != spec.body.files(spec.parts):
        return f"files {sorted(shard_index.files)}"
    for part in spec.parts:
        largest = part.num_bytes + part.num_bytes // 128 + 1024  # zstd adds less to noise
        spans, end = shard_index.spans[part.name], shard_index.files[spec.body.file_of(part)].size
        for row, (offset, size) in enumerate(zip(spans.offset, spans.size, strict=True)):
            if size > largest or offset + size > end:
                return f"part {part.name}, row {row}: {size} bytes at {offset} of {end}"
    return None
