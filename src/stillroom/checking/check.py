"""The check of a whole cache: every byte of it, and whether it is the cache of these pictures.

Costs one read of everything, and sha256 of it. Nothing is written.
"""

import re
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from stillroom.cache.folder import Cache, open_cache
from stillroom.cache.identity import both_sides, differences
from stillroom.cache.scrub import Problem
from stillroom.cache.shard_index import FILE
from stillroom.checking.leftovers import leftovers, quarantined
from stillroom.checking.parallel_scrub import scrub_shards
from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import decode_json, read_json
from stillroom.pictures.dataset import PictureSet
from stillroom.types import ShardId

IDENTITY, CODECS, MANIFEST = "identity.json", "codecs.safetensors", "manifest.json"
_SHARD = re.compile(r"(train|val)-[0-9]{6}\.[a-z]+")
_OURS = {IDENTITY, CODECS, MANIFEST, "tmp", "quarantine"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found; all is well when there is no problem."""

    cache: Path
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    num_shards: int = 0  # that were read in full
    num_rows: int = 0
    num_bytes: int = 0
    seconds: float = 0.0

    @property
    def summary(self) -> str:
        """The last line of the text: how much was read, how fast, and the verdict."""
        count = len(self.problems)
        verdict = "all is well" if not count else f"{count} problem{'s' if count > 1 else ''}"
        speed = self.num_bytes / 1e6 / max(self.seconds, 1e-9)
        return (
            f"{self.num_shards} shards, {self.num_rows} rows, {self.num_bytes / 1e6:.1f} MB"
            f" in {self.seconds:.1f} s ({speed:.0f} MB/s): {verdict}"
        )


def find_folder(path: Path) -> Path:
    """Return the cache that a path names: itself, or the only cache in it. Raises UserError."""
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise UserError(f"{path} is no folder", found=found, wanted="a cache, cache/NAME")
    if _looks_like_a_cache(path):
        return path
    caches = [
        item for item in sorted(path.iterdir()) if item.is_dir() and _looks_like_a_cache(item)
    ]
    if len(caches) == 1:
        return caches[0]
    if not caches:
        raise UserError(f"there is no cache in {path}", fix="python tools/cache_teacher.py RECIPE")
    raise UserError(
        f"there are {len(caches)} caches in {path}",
        found=", ".join(map(str, caches)),
        wanted="one",
        fix=f"name it: python tools/check_cache.py {caches[0]}",
    )


def check_cache(
    folder: Path,
    pictures: PictureSet | None = None,
    *,
    only: Collection[ShardId] | None = None,
    workers: int = 2,
) -> Report:
    """Check a cache folder; of its shards those in `only` (None: all) are read in full.

    `pictures` are the picture shards to compare with. What is wrong is in the report; raises
    UserError for a cache of another version, Stopped, and FailureError where reading fails.
    """
    began = time.perf_counter()
    votes = stated(folder)
    cache = open_or_say(folder, votes)
    if isinstance(cache, Problem):
        return Report(cache=folder, problems=(cache,), notes=tuple(_notes(folder, None, None)))
    codecs_sha256, problems = _check_codecs(cache, votes)
    if pictures is not None:
        problems += _check_pictures(cache, pictures)
    missing = cache.missing()
    published = [id_ for id_ in cache.shard_ids() if id_ not in missing]
    wanted = [id_ for id_ in published if only is None or id_ in only]
    num_rows = num_bytes = 0
    if codecs_sha256 is not None:
        bad, num_rows, num_bytes = scrub_shards(cache, wanted, codecs_sha256, pictures, workers)
        problems += bad
    problems += _check_manifest(cache, missing)
    ours = _OURS | {cache.shard_spec(id_, codecs_sha256 or "-").folder for id_ in cache.shard_ids()}
    return Report(
        cache=folder,
        problems=tuple(problems),
        notes=tuple(_notes(folder, ours, pictures)),
        num_shards=len(wanted),
        num_rows=num_rows,
        num_bytes=num_bytes,
        seconds=time.perf_counter() - began,
    )


def _looks_like_a_cache(path: Path) -> bool:
    if (path / IDENTITY).exists() or (path / CODECS).exists():
        return True
    return any(_SHARD.fullmatch(item.name) and item.is_dir() for item in path.iterdir())


def stated(folder: Path) -> dict[str, tuple[str, str]]:
    """Fingerprint and codecs' sha256 that each shard whose shard.json verifies says it is of."""
    found = {}
    for item in sorted(folder.iterdir()):
        if _SHARD.fullmatch(item.name):
            try:
                body = read_json(item / FILE)
            except (OSError, DamageError):
                continue  # the scrub says what is wrong with it
            found[item.name] = str(body.get("fingerprint")), str(body.get("codecs_sha256"))
    return found


def open_or_say(folder: Path, votes: dict[str, tuple[str, str]] | None = None) -> Cache | Problem:
    """Open a cache, or say why nothing of it can be checked; raises UserError on another version.

    `votes` is what its shards say they are of; it is read where it is not given.
    """
    votes = stated(folder) if votes is None else votes
    path = folder / IDENTITY
    after = "; nothing else can be checked before it is mended"
    if not path.exists():
        return Problem(kind="identity", path=path, what=f"{path} is missing{after}")
    try:
        cache = open_cache(folder)
    except (DamageError, OSError) as error:
        what = error.what if isinstance(error, DamageError) else f"{path} cannot be read: {error}"
        return Problem(kind="identity", path=path, what=what + after)
    others = {fingerprint for fingerprint, _ in votes.values()}
    is_named = folder.resolve().name.endswith(f"-{cache.fingerprint[:8]}")
    if not is_named and others and cache.fingerprint not in others:
        sides = f"it is {cache.fingerprint[:8]}, the shards are of {min(others)[:8]}"
        what = f"{path} is the identity of another cache ({sides}){after}"
        return Problem(kind="identity", path=path, what=what)
    return cache


def _check_codecs(
    cache: Cache, outputs: dict[str, tuple[str, str]]
) -> tuple[str | None, list[Problem]]:
    """The sha256 of the fitted values that the shards were made with, and what is wrong with them.

    Where no shard was made with the file that is there, the file is at fault, not the shards.
    """
    path = cache.path / CODECS
    votes = Counter(
        codecs for fingerprint, codecs in outputs.values() if fingerprint == cache.fingerprint
    )
    majority = votes.most_common(1)[0][0] if votes else None
    if not path.exists():
        what = f"{path} is missing, and {votes.total()} shards were made with it"
        return majority, [Problem(kind="codecs", path=path, what=what)] if votes else []
    try:
        found = cache.codecs_sha256
    except (DamageError, OSError) as error:
        what = error.what if isinstance(error, DamageError) else f"{path} cannot be read: {error}"
        return majority, [Problem(kind="codecs", path=path, what=what)]
    if votes and found not in votes:
        what = (
            f"{path} is not the file that {votes.total()} shards were made with"
            f" (sha256: found {found}, wanted {majority})"
        )
        return majority, [Problem(kind="codecs", path=path, what=what)]
    return found, []


def _check_pictures(cache: Cache, pictures: PictureSet) -> list[Problem]:
    """The pictures are those that the teachers saw, shard by shard, and of the same size."""
    wanted = cache.identity["pictures"]
    problems = []
    if pictures.geometry != cache.geometry:
        what = f"the pictures of {pictures.path} have another size than the teachers saw"
        sides = f" (h, w: found {pictures.geometry}, wanted {cache.geometry})"
        problems.append(Problem(kind="pictures", path=pictures.path, what=what + sides))
    if pictures.digest == wanted["digest"]:
        return problems
    here = {info.id: info.pictures for info in pictures.shards}
    there = {ShardId(s["split"], s["number"]): s["pictures"] for s in wanted["shards"]}
    for shard_id in sorted(here.keys() | there.keys()):
        if here.get(shard_id) != there.get(shard_id):
            what = (
                f"shard {shard_id}: the pictures of {pictures.path} are not those that the teachers"
                f" saw ({_sides(here.get(shard_id), there.get(shard_id))})"
            )
            problems.append(Problem(kind="pictures", shard=shard_id, path=pictures.path, what=what))
    if here == there:
        what = f"{cache.path / IDENTITY}: the digest of the pictures is not that of its shards"
        problems.append(Problem(kind="pictures", path=cache.path / IDENTITY, what=what))
    return problems


def _sides(found: str | None, wanted: str | None) -> str:
    texts = ["none" if s is None else f"digest {s[:16]}" for s in (found, wanted)]
    return f"found {texts[0]}, wanted {texts[1]}"


def _check_manifest(cache: Cache, missing: tuple[ShardId, ...]) -> list[Problem]:
    """manifest.json is what follows from the shards; absent, or without them: incomplete."""
    path, problems = cache.path / MANIFEST, []
    if missing:
        problems.append(_incomplete(cache, missing))
    if not path.exists():
        if not missing:
            what = (
                f"all {len(cache.shard_ids())} shards are there, {path} is not:"
                f" python tools/check_cache.py {cache.path} --repair writes it"
            )
            problems.append(Problem(kind="incomplete", path=path, what=what))
        return problems
    try:
        found = read_json(path)
        try:
            wanted = decode_json(cache.manifest(), path)
        except (
            DamageError,
            UserError,
            OSError,
        ):  # said elsewhere; until then this much can be compared
            wanted = {**found, "fingerprint": cache.fingerprint}
    except (DamageError, OSError) as error:
        what = error.what if isinstance(error, DamageError) else f"{path} cannot be read: {error}"
        return [*problems, Problem(kind="manifest", path=path, what=what)]
    if different := differences(found, wanted):
        sides = "found {}, wanted {}".format(*both_sides(different, limit=2))
        what = f"{path} is not what follows from the shards ({sides})"
        problems.append(Problem(kind="manifest", path=path, what=what))
    return problems


def _incomplete(cache: Cache, missing: tuple[ShardId, ...]) -> Problem:
    names = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
    stale = f", though {MANIFEST} is there" if (cache.path / MANIFEST).exists() else ""
    what = (
        f"{len(missing)} of {len(cache.shard_ids())} shards are missing"
        f" ({names}){stale}: python tools/cache_teacher.py RECIPE --run.cache {cache.path} goes on"
    )
    return Problem(kind="incomplete", path=cache.path, what=what)


def _notes(folder: Path, ours: Collection[str] | None, pictures: PictureSet | None) -> list[str]:
    """What is worth saying and not wrong; `ours` are the names that belong, None if unknown."""
    left = leftovers(folder)
    notes = [str(leftover) for leftover in left]
    if ours is not None:
        known = {*ours, *(leftover.path.name for leftover in left)}
        strangers = sorted({item.name for item in folder.iterdir()} - known)
        notes += [f"{folder / name} does not belong to the cache" for name in strangers]
    names, size = quarantined(folder)
    if names:
        notes.append(
            f"{folder / 'quarantine'} keeps {', '.join(names)} ({size / 1e6:.1f} MB);"
            " delete it when nobody wants to look into it"
        )
    if pictures is None:
        notes.append("not compared with picture shards: give a RECIPE or --shards FOLDER")
    return notes
