"""What killed writers left in a cache, and how much lies in quarantine.

A temporary folder is `tmp/<shard>-<host>-<process>-<random>`. It is dead when its host is this one
and has no such process, or when nothing in it was written for a day. A live process of this host
keeps its folders however long it is silent.
"""

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from stillroom.cache.writer import this_host

SILENT_S = 24 * 3600.0  # of another host, or of a file that names none
_FOLDER = re.compile(r".+-(?P<host>[A-Za-z0-9_]+)-(?P<process>[0-9]+)-[0-9a-f]{8}")
_ASIDE = re.compile(r"\..+\.[0-9]+\.[0-9a-f]{8}\.tmp")  # a JSON file that was being written


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A temporary file or folder; `why` says how it is known that nobody writes it any more."""

    path: Path
    num_bytes: int
    is_dead: bool
    why: str

    def __str__(self) -> str:
        state = "dead" if self.is_dead else "alive, or not known to be dead"
        return f"{self.path} ({self.num_bytes / 1e6:.1f} MB) is {state}: {self.why}"


def leftovers(cache: Path) -> list[Leftover]:
    """Return every temporary folder of a cache, and every temporary file in its own folder."""
    found = [_judge(path) for path in _entries(cache / "tmp")]
    found += [_judge(path) for path in _entries(cache) if _ASIDE.fullmatch(path.name)]
    return found


def remove_dead(cache: Path) -> list[Leftover]:
    """Remove what is dead and return it."""
    dead = [leftover for leftover in leftovers(cache) if leftover.is_dead]
    for leftover in dead:
        if leftover.path.is_dir() and not leftover.path.is_symlink():
            shutil.rmtree(leftover.path)
        else:
            leftover.path.unlink()
    return dead


def quarantined(cache: Path) -> tuple[list[str], int]:
    """Return the names of what lies in quarantine (without the reasons) and all its bytes."""
    entries = _entries(cache / "quarantine")
    names = {path.name for path in entries}
    reasons = {name for name in names if name.endswith(".json") and name[:-5] in names}
    return sorted(names - reasons), sum(map(num_bytes, entries))


def num_bytes(path: Path) -> int:
    """Return the size of a file, or of all files below a folder."""
    return sum(size for size, _ in _stats(path))


def _judge(path: Path) -> Leftover:
    stats = _stats(path)
    silent_s = time.time() - max((written for _, written in stats), default=time.time())
    is_dead, why = _verdict(path.name, silent_s)
    return Leftover(path=path, num_bytes=sum(size for size, _ in stats), is_dead=is_dead, why=why)


def _verdict(name: str, silent_s: float) -> tuple[bool, str]:
    owner = _FOLDER.fullmatch(name)
    if owner is not None and owner["host"] == this_host():
        process = int(owner["process"])
        if _is_running(process):
            return False, f"process {process} of this host is running"
        return True, f"this host has no process {process}"
    whose = f"of host {owner['host']}" if owner is not None else "of an unknown host"
    hours = f"{whose}, nothing written for {silent_s / 3600:.1f} hours"
    return silent_s > SILENT_S, f"{hours} (dead after {SILENT_S / 3600:.0f})"


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _stats(path: Path) -> list[tuple[int, float]]:
    """(size in bytes, time of the last write) of a path and of everything below it."""
    inside = [Path(parent, name) for parent, d, f in os.walk(path) for name in [*d, *f]]
    found = []
    for item in [path, *inside]:
        try:
            stat = item.lstat()
        except FileNotFoundError:  # published or removed meanwhile
            continue
        size = 0 if item.is_dir() else stat.st_size
        found.append((size, stat.st_mtime))
    return found


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
