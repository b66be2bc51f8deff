"""What to say when the operating system refuses us something: space, a folder, a file."""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillroom.errors import FailureError, StillroomError, UserError, with_urls

_AGAIN = "then run the same command again: what is published stays, the rest is made"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG}
_NO_FILES = {errno.EMFILE, errno.ENFILE}


@contextmanager
def explain_os_errors(
    what: str, root: Path, flag: str = "--run.cache", again: str = _AGAIN
) -> Iterator[None]:
    """Within, an OSError becomes one of ours that begins with `what`.

    `root` is where we write, `flag` names it, `again` says what to do once it is mended.
    """
    try:
        yield
    except OSError as error:
        told = explained(error, what, root, flag, again)
        fix = f"see to {_place(error, root)}, {again}"
        raise told or FailureError(what, found=error, fix=fix, is_local=True) from error


def free_bytes(path: Path) -> int:
    """Return what is free on the file system of a path, whether or not it exists yet."""
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    while not os.path.exists(path):  # noqa: PTH110  (Path.exists raises where looking is forbidden)
        path = path.absolute().parent
    return path


def _place(error: OSError, root: Path) -> Path:
    return _existing(Path(error.filename2 or error.filename or root))


def explained(
    error: OSError, what: str, root: Path, flag: str, again: str
) -> StillroomError | None:
    """Return what to tell a person instead, as `explain_os_errors` does, or None where the system's
    own words are all there is.
    """
    place = _place(error, root)
    if flag == "--run.cache" and with_urls(root) != str(root):
        flag = "--run.local"  # it is the disk of the copies
    reason, whole, top = error.strerror or str(error), place.absolute(), root.absolute()
    is_ours = whole == top or top in whole.parents or whole in top.parents
    elsewhere = f" or name another place with {flag}" if is_ours else ""
    if error.errno in _FULL:
        return FailureError(
            f"{what}: the disk of {root} is full",
            found=f"{reason} ({free_bytes(root) / 1e6:.1f} MB free)",
            fix=f"make room there or name another place with {flag}, {again}",
            is_local=True,
        )
    if error.errno in _FORBIDDEN:
        return UserError(
            f"{what}: {place} may not be read or written",
            found=reason,
            wanted="permission for this user",
            fix=f"change its permissions{elsewhere}, {again}",
            is_local=True,
        )
    if error.errno in _NO_FOLDER:
        return UserError(
            f"{what}: {place} cannot be a folder",
            found=reason,
            fix=f"name another place with {flag}",
            is_local=True,
        )
    if error.errno in _NO_FILES:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return FailureError(
            f"{what}: no further file can be opened",
            found=f"{reason} (process {os.getpid()} may have {limit} open)",
            fix=f"raise the limit (ulimit -n {max(4096, 2 * limit)}), {again}",
        )
    return None
