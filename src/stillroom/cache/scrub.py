"""Reads everything of one shard and lists what is wrong, before publishing or any time after."""

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.cache.frames import crc32c
from stillroom.cache.reader import ShardReader
from stillroom.cache.record import FILE, Plan, Record
from stillroom.errors import DamageError
from stillroom.jsonfile import file_sha256
from stillroom.types import ShardId

if TYPE_CHECKING:
    from stillroom.cache.identity import Cache


def scrub_shard(cache: "Cache", shard_id: ShardId) -> list[str]:
    """Return every problem of a published shard; an empty list means that all is well."""
    plan = cache.plan(shard_id)
    return scrub_folder(cache.path / plan.folder, plan)


def scrub_folder(
    folder: Path, plan: Plan, raw_crcs: dict[str, list[int]] | None = None
) -> list[str]:
    """Check record, files, rows, coverage; `raw_crcs` has the decoded rows' crc32c per part."""
    try:
        reader = ShardReader(folder, plan)
    except DamageError as error:
        return [str(error)]
    with reader:
        problems = [*_file_problems(folder, plan, reader.record), *_coverage_problems(reader, plan)]
        for i in range(len(reader)):
            for part in plan.parts:
                try:
                    value = reader.read(i, [part.name])[part.name]
                except DamageError as error:
                    problems.append(str(error))
                    continue
                if raw_crcs is not None and crc32c(value) != raw_crcs[part.name][i]:
                    key = reader.rows[i].key
                    problems.append(f"{folder}: {part.name} of {key} is not what was written")
    return problems


def _file_problems(folder: Path, plan: Plan, record: Record) -> list[str]:
    """sha256 of every file, files that do not belong, and the body's own index and metadata."""
    problems = []
    for name, (_, sha256) in record.files.items():
        if file_sha256(folder / name) != sha256:
            problems.append(f"shard {plan.shard_id}: the sha256 of {folder / name} differs")
    found = {
        Path(parent, name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
    }
    strangers = sorted(found - record.files.keys() - {FILE})
    problems += [f"shard {plan.shard_id}: {folder / name} does not belong" for name in strangers]
    for part in plan.parts:
        problems += plan.body.problems(folder, part, record.spans[part.name])
    return problems


def _coverage_problems(reader: ShardReader, plan: Plan) -> list[str]:
    """Every key must have every view, once per region."""
    counts = Counter((row.key, row.region) for row in reader.rows)
    return [
        f"shard {plan.shard_id}: key {key} has {count} of {plan.num_views} views"
        for (key, _), count in counts.items()
        if count != plan.num_views
    ]
