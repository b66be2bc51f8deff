"""What killed writers left in a cache.

A temporary folder is `tmp/<shard>-<host>-<process>-<random>`. It is dead when its host is this one
and has no such process, or when it is of another and nothing in it was written for a day.
"""

import os
import re
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path

from stillroom.cache.writer import this_host

SILENT_S = 24 * 3600.0  # of another host, or of a file that names none
_FOLDER = re.compile(r".+-(?P<host>[A-Za-z0-9_]+)-(?P<process>[0-9]+)-[0-9a-f]{8}")


def find_dead(cache: Path) -> list[Path]:
    """Return the temporary files and folders of a cache that nobody writes any more."""
    return [path for path in sorted((cache / "tmp").glob("*")) if _is_dead(path)]


def remove_dead(cache: Path) -> list[Path]:
    """Remove what is dead and return it."""
    dead = find_dead(cache)
    for path in dead:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return dead


def num_bytes(path: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(found.st_size for found in _stats(path) if stat.S_ISREG(found.st_mode))


def _is_dead(path: Path) -> bool:
    owner = _FOLDER.fullmatch(path.name)
    if owner is not None and owner["host"] == this_host():
        return not _is_running(int(owner["process"]))
    written = max((found.st_mtime for found in _stats(path)), default=time.time())
    return time.time() - written > SILENT_S


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _stats(path: Path) -> list[os.stat_result]:
    """Of a path and of everything below it that is not published or removed meanwhile."""
    found = []
    for item in (path, *(Path(parent, n) for parent, d, f in os.walk(path) for n in [*d, *f])):
        with suppress(FileNotFoundError):
            found.append(item.lstat())
    return found
