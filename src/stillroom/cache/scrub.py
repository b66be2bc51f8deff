"""Reads everything of one shard and lists what is wrong, before publishing or any time after."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from stillroom.cache.frames import crc32c
from stillroom.cache.reader import ShardReader
from stillroom.cache.shard_index import FILE, ShardSpec
from stillroom.errors import DamageError, StillroomError
from stillroom.types import ShardId

if TYPE_CHECKING:
    from stillroom.cache.folder import Cache

_BLOCK_BYTES = 1 << 20

ProblemKind = Literal[
    "identity", "codecs", "manifest", "incomplete", "shard", "pictures", "teacher", "audit"
]
Tick = Callable[[int, int], None]  # called with bytes and rows done; may raise to stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: what, in one line that names the place; which file or folder."""

    kind: ProblemKind = "shard"  # what is at fault; incomplete = something is missing
    shard: ShardId | None = None
    path: Path
    what: str

    def __str__(self) -> str:
        return self.what


def problem_of(error: StillroomError, shard_id: ShardId, path: Path) -> Problem:
    """Return an error's text in one line, without its fix."""
    sides = [f"found {error.found}"] if error.found is not None else []
    sides += [f"wanted {error.wanted}"] if error.wanted is not None else []
    text = error.what + (f" ({', '.join(sides)})" if sides else "")
    if str(shard_id) not in text:
        text = f"shard {shard_id}: {text}"
    return Problem(shard=shard_id, path=path, what=" ".join(text.split()))


def scrub_shard(cache: "Cache", shard_id: ShardId) -> list[Problem]:
    """Return every problem of a published shard; an empty list means that all is well."""
    spec = cache.shard_spec(shard_id)
    return scrub_folder(cache.path / spec.folder, spec)


def scrub_folder(
    folder: Path, spec: ShardSpec, raw_crcs: dict[str, list[int]] | None = None
) -> list[Problem]:
    """Check shard.json, files, rows, coverage; `raw_crcs` has the decoded rows' crc32c per part."""
    try:
        reader = ShardReader(folder, spec)
    except DamageError as error:
        return [problem_of(error, spec.shard_id, folder)]
    with reader:
        return scrub_reader(reader, folder, spec, raw_crcs)


def scrub_reader(
    reader: ShardReader,
    folder: Path,
    spec: ShardSpec,
    raw_crcs: dict[str, list[int]] | None = None,
    tick: Tick = lambda num_bytes, num_rows: None,
) -> list[Problem]:
    """Check everything of an open shard; `tick` is called for each row (bytes of its
    frames, 1)."""
    return [
        *_file_problems(reader, folder, spec, tick),
        *_coverage_problems(reader, folder, spec),
        *_row_problems(reader, folder, spec, raw_crcs, tick),
    ]


def _row_problems(
    reader: ShardReader,
    folder: Path,
    spec: ShardSpec,
    raw_crcs: dict[str, list[int]] | None,
    tick: Tick,
) -> list[Problem]:
    """crc32c and decode of every part of every row."""
    problems = []
    out = {part.name: np.empty(part.shape, part.stored) for part in spec.parts}
    stored = reader.shard_index.spans.values()
    for i in range(len(reader)):
        for part in spec.parts:
            path = folder / spec.body.file_of(part)
            try:
                value = reader.read(i, [part.name], out)[part.name]
            except DamageError as error:
                problems.append(problem_of(error, spec.shard_id, path))
                continue
            if raw_crcs is not None and crc32c(value) != raw_crcs[part.name][i]:
                what = (
                    f"shard {spec.shard_id}, key {reader.rows[i].key} (row {i}), part {part.name}:"
                    f" {path} does not hold what was written"
                )
                problems.append(Problem(shard=spec.shard_id, path=path, what=what))
        tick(sum(spans.size[i] for spans in stored), 1)
    return problems


def _file_problems(reader: ShardReader, folder: Path, spec: ShardSpec, tick: Tick) -> list[Problem]:
    """sha256 of every file, and files that do not belong."""
    files, shard = reader.shard_index.files, spec.shard_id
    problems = []
    for name, file in files.items():
        if _sha256(folder / name, tick) != file.sha256:
            what = f"shard {shard}: the sha256 of {folder / name} differs"
            problems.append(Problem(shard=shard, path=folder / name, what=what))
    found = {
        Path(parent, name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
    }
    for name in sorted(found - files.keys() - {FILE}):
        what = f"shard {shard}: {folder / name} does not belong"
        problems.append(Problem(shard=shard, path=folder / name, what=what))
    return problems


def _sha256(path: Path, tick: Tick) -> str:
    """The sha256 of a file; `tick` may stop it after each block of 1 MiB."""
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            total.update(block)
            tick(0, 0)
    return total.hexdigest()


def _coverage_problems(reader: ShardReader, folder: Path, spec: ShardSpec) -> list[Problem]:
    """Every key must have every view, once per region."""
    counts = Counter((row.key, row.region) for row in reader.rows)
    problems = []
    for (key, _), count in counts.items():
        if count != spec.num_views:
            what = f"shard {spec.shard_id}: key {key} has {count} of {spec.num_views} views"
            problems.append(Problem(shard=spec.shard_id, path=folder, what=what))
    return problems
