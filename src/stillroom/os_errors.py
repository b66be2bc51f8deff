"""What to say when the operating system refuses stage 1 something: space, a folder, a file."""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillroom.errors import FailureError, StillroomError, UserError

_AGAIN = "then run the same command again: what is published stays, the rest is made"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG}
_NO_FILES = {errno.EMFILE, errno.ENFILE}


@contextmanager
def explain_os_errors(what: str, cache: Path) -> Iterator[None]:
    """Within, an OSError becomes one of ours that begins with `what`; `cache` is where we write."""
    try:
        yield
    except OSError as error:
        raise _explained(error, what, cache) from error


def free_bytes(path: Path) -> int:
    """Return what is free on the file system of a path, whether or not it exists yet."""
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    while not os.path.exists(path):  # noqa: PTH110  (Path.exists raises where looking is forbidden)
        path = path.absolute().parent
    return path


def _explained(error: OSError, what: str, cache: Path) -> StillroomError:
    place = _existing(Path(error.filename2 or error.filename or cache))
    reason, whole, root = error.strerror or str(error), place.absolute(), cache.absolute()
    is_of_cache = whole == root or root in whole.parents or whole in root.parents
    elsewhere = " or name another place with --run.cache" if is_of_cache else ""
    if error.errno in _FULL:
        return FailureError(
            f"{what}: the disk of {cache} is full",
            found=f"{reason} ({free_bytes(cache) / 1e6:.1f} MB free)",
            fix=f"make room there or name another place with --run.cache, {_AGAIN}",
        )
    if error.errno in _FORBIDDEN:
        return UserError(
            f"{what}: {place} may not be read or written",
            found=reason,
            wanted="permission for this user",
            fix=f"change its permissions{elsewhere}, {_AGAIN}",
        )
    if error.errno in _NO_FOLDER:
        return UserError(
            f"{what}: {place} cannot be a folder",
            found=reason,
            fix="name another place with --run.cache",
        )
    if error.errno in _NO_FILES:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return FailureError(
            f"{what}: no further file can be opened",
            found=f"{reason} (process {os.getpid()} may have {limit} open)",
            fix=f"raise the limit (ulimit -n {max(4096, 2 * limit)}), {_AGAIN}",
        )
    return FailureError(what, found=error, fix=f"see to {place}, {_AGAIN}")
