"""What lies in the usual folders: data sets, caches and runs; their size, whether they are whole,
their score, what made them, and which caches no run needs.

A run needs the cache that its receipt names. One without a receipt is not finished: it may need any
cache of its pictures, so all of these count as needed.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.cache.folder import IDENTITY_FILE, open_cache
from stillroom.columns import in_columns
from stillroom.errors import DamageError, UserError, first_line
from stillroom.jsonfile import read_json
from stillroom.metrics import SCORES
from stillroom.pictures.dataset import open_pictures

_UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One folder; `needs` are the fingerprint or digest of the pictures of what a run reads."""

    path: Path
    size_bytes: int
    state: str
    about: str
    name: str = ""  # of a cache: its fingerprint
    pictures: str = ""  # digest of those that a cache was made of
    needs: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        """False where it cannot be opened."""
        return self.state != _UNREADABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What was found, kind by kind."""

    data: tuple[Entry, ...]
    caches: tuple[Entry, ...]
    runs: tuple[Entry, ...]

    def users(self, cache: Entry) -> list[Entry]:
        """Return the runs that need a cache."""
        names = {cache.name, cache.pictures, "any"}
        return [run for run in self.runs if names & {*run.needs}]

    @property
    def unneeded(self) -> tuple[Entry, ...]:
        """Caches that no run needs; one that cannot be opened is not judged."""
        return tuple(one for one in self.caches if one.is_sound and not self.users(one))


def take_inventory(shards: Path, caches: Path, runs: Path) -> Inventory:
    """Look into the three folders; what is not there is empty, what is damaged says so."""
    return Inventory(
        data=tuple(_entry(path, _data) for path in _folders(shards, "dataset.json")),
        caches=tuple(_entry(path, _cache) for path in _folders(caches, IDENTITY_FILE)),
        runs=tuple(_entry(path, _run) for path in _folders(runs, "recipe.json")),
    )


def inventory_text(found: Inventory) -> str:
    """Return tables for people."""
    uses = {cache.path: _use(cache, found) for cache in found.caches if cache.is_sound}
    lines = []
    for title, entries in (("data", found.data), ("caches", found.caches), ("runs", found.runs)):
        rows = [
            [str(e.path), _size(e.size_bytes), e.state, e.about + uses.get(e.path, "")]
            for e in entries
        ]
        lines += [f"{title}: {len(entries)}, {_size(sum(e.size_bytes for e in entries))}"]
        lines += [f"  {line}" for line in in_columns(rows, 4)] if rows else []
    return "\n".join(lines)


def deletion_text(caches: Sequence[Entry]) -> str:
    """Return what would be deleted."""
    lines = [f"  {e.path}  {_size(e.size_bytes)}  {e.state}" for e in caches]
    total = _size(sum(e.size_bytes for e in caches))
    return "\n".join([*lines, f"delete {len(caches)} caches, {total}?"])


def _use(cache: Entry, found: Inventory) -> str:
    names = [run.path.name for run in found.users(cache)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; for {', '.join(names[:3])}{more}" if names else "; no run needs it"


def _folders(root: Path, file: str) -> list[Path]:
    return sorted(path.parent for path in root.glob(f"*/{file}"))


def _entry(path: Path, read: Any) -> Entry:
    size = sum(_file_sizes(path))
    try:
        return Entry(path=path, size_bytes=size, **read(path))
    except (DamageError, UserError, OSError, KeyError, TypeError) as error:
        about, needs = first_line(error), ("any",)
        return Entry(path=path, size_bytes=size, state=_UNREADABLE, about=about, needs=needs)


def _file_sizes(folder: Path) -> Iterator[int]:
    for top, _, names in os.walk(folder):
        for name in names:
            yield os.lstat(os.path.join(top, name)).st_size  # noqa: PTH118


def _data(path: Path) -> dict[str, Any]:
    pictures = open_pictures(path)
    splits = sorted({shard.split for shard in pictures.shards})
    rows = ", ".join(f"{pictures.num_rows(split)} {split}" for split in splits)
    size = " x ".join(map(str, pictures.geometry)) if pictures.geometry else "several sizes"
    missing = [s.id for s in pictures.shards if not (path / f"{s.id}.tar").is_file()]
    return {
        "state": f"{len(missing)} shards missing" if missing else "complete",
        "about": f"{rows}, {len(pictures.classes)} classes, {size}",
    }


def _cache(path: Path) -> dict[str, Any]:
    cache = open_cache(path)
    every, missing = len(cache.shard_ids()), len(cache.missing())
    targets = (
        f"{name} of {_teacher(cache.identity['targets'][name]['teacher'])} as {spec.codec}"
        for name, spec in cache.specs.items()
    )
    return {
        "state": f"{every - missing}/{every} shards" if missing else "complete",
        "about": f"{len(cache)} rows, {', '.join(targets)}",
        "name": cache.fingerprint,
        "pictures": cache.identity["pictures"]["digest"],
    }


def _teacher(teacher: dict[str, Any]) -> str:
    tensor = teacher.get("tensor")
    return f"{teacher['class']}{f' {tensor}' if tensor else ''}"


def _run(path: Path) -> dict[str, Any]:
    recipe = read_json(path / "recipe.json")["recipe"]
    finished, needs = path / "receipt.json", ()
    if finished.is_file():
        receipt = read_json(finished)
        state = "ended early" if receipt["ended_early"] else "finished"
        needs = (receipt["cache"]["fingerprint"],) if receipt["cache"] else ()
    else:
        state = f"not finished, saved at step {_last_step(path)}"
        needs = (_pictures_of(recipe),) if recipe["teachers"] else ()
    student = next((f for f in (path, path / "best") if (f / "student.json").is_file()), None)
    score = read_json(student / "student.json").get("score", {}) if student else {}
    known = [f"{label} {score[n]:.4f}" for n, label in SCORES.items() if score.get(n)]
    about = f"{recipe['name']} ({recipe['student']['class']}), {recipe['epochs']} epochs"
    return {"state": state, "about": ", ".join([*known[:1], about]), "needs": needs}


def _last_step(run: Path) -> int:
    steps = [path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def _pictures_of(recipe: dict[str, Any]) -> str:
    """Return the digest of a recipe's pictures, "any" where they cannot be opened."""
    try:
        return open_pictures(Path(recipe["data"]["shards"])).digest
    except (DamageError, UserError, OSError):
        return "any"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
