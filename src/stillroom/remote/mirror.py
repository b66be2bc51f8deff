"""A folder on this machine that holds what is in use of a URL.

It says so itself, in `store.json`; whoever opens a shard in it asks first that it be there. What is
here is whole and was checked as it came: it is fetched aside by one process of the machine, under a
lock that dies with it, and renamed. Of all that lies in one `--run.local`, what was used least
recently goes once the limit is passed: a name that goes leaves open files as they are.
"""

import errno
import fcntl
import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from stillroom.errors import DamageError, FailureError, UserError, holds_copies
from stillroom.jsonfile import Count, Declared, decode_json, read_json, write_bytes, write_json
from stillroom.random_access import RandomAccessFile
from stillroom.remote.store import Store, is_url

MARKER = "store.json"
LOCAL_GB = 50.0  # most that is kept of a URL, unless somebody says otherwise
_ASIDE = "fetching"
_LOCKS = 64
_DEPTHS = ("*/*", "*/*/*")  # of mirrors below the folder of all: a URL's, a cache's below a URL
_SHARD = re.compile(r"(train|val)-\d{6}\.(json|tar|zarr|wds)")
_OWNERS = ("dataset.json", "identity.json")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Marker(Declared, frozen=True):
    url: str
    local: str  # the folder of all mirrors, of which together `limit_bytes` are kept
    limit_bytes: Count


class RemoteFile(NamedTuple):
    """A file to be fetched: its path in the store, its size in bytes and its sha256."""

    name: str
    size: int
    sha256: str


# per path within what is fetched ("" = itself): what it is, or which file
Contents = dict[str, bytes | RemoteFile]


def place_of(word: str, local: str | None = None, local_gb: float | None = None) -> Path:
    """Return the folder that a word names: itself, or the mirror of a URL, made where it is not
    there yet; nothing is fetched. At most `local_gb` of copies are kept; None: as before, at first
    50. Raises UserError for what is no such number.
    """
    if not is_url(word):
        return Path(word)
    if local_gb is not None and not 0 < local_gb < math.inf:
        raise UserError("--run.local-gb is out of range", found=local_gb, wanted="more than 0")
    url = word.rstrip("/")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = cache / "stillroom" if local is None else Path(local)
    folder = root.absolute() / hashlib.sha256(url.encode()).hexdigest()[:12] / url.split("/")[-1]
    folder.mkdir(parents=True, exist_ok=True)
    limit_bytes = int(1e9 * (LOCAL_GB if local_gb is None else local_gb))
    if local_gb is None and (folder / MARKER).exists():
        limit_bytes = read_json(folder / MARKER, _Marker).limit_bytes
    marker = _Marker(url=url, local=str(root.absolute()), limit_bytes=limit_bytes)
    write_json(folder / MARKER, marker)
    return folder


def mirror_of(path: Path) -> "Mirror | None":
    """Return the mirror that a folder, or the one above it, is; None for an ordinary folder."""
    for folder, below in ((path, ""), (path.parent, f"/{path.name}")):
        if (folder / MARKER).exists():
            marker = read_json(folder / MARKER, _Marker)
            holds_copies(folder, marker.url)
            return Mirror(path, marker.url + below, Path(marker.local), marker.limit_bytes)
    return None


class Mirror:
    """What of one URL is in one folder."""

    def __init__(self, path: Path, url: str, root: Path, limit_bytes: int) -> None:
        self.path, self.store = path, Store(url)
        self._root, self._limit_bytes = root, limit_bytes

    def refresh(self, *names: str) -> list[str]:
        """Bring small files that are here up to date; return the names of those that there are.

        Where one that says whose the shards are has changed, those of the old one go.
        """
        found = self.store.get_many(names)
        for name, data in zip(names, found, strict=True):
            path = self.path / name
            if data is None:
                path.unlink(missing_ok=True)
            elif not path.exists() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                if name in _OWNERS and path.exists():
                    for shard in filter(lambda p: _SHARD.fullmatch(p.name), self.path.iterdir()):
                        self._remove(shard)
                write_bytes(path, data)
        return [name for name, data in zip(names, found, strict=True) if data is not None]

    def get_json(self, name: str, sha256: str) -> bytes:
        """Return a JSON file of ours whose last member is this; raises DamageError."""
        where = f"{self.store.url}/{name}"
        if (data := self.store.get(name)) is None:
            raise DamageError(f"{where} is missing")
        decode_json(data, where)
        if (found := data[-67:-3].decode()) != sha256:
            raise DamageError(f"{where} is not the file that was named", found=found, wanted=sha256)
        return data

    def fetch(
        self, name: str, contents: Callable[[], Contents], damaged: DamageError | None = None
    ) -> bool:
        """Have a shard here, a file or a folder; True where it had to be fetched.

        One that is here and `damaged` goes first. Raises DamageError where the store's bytes are
        not those that were written.
        """
        if damaged is None and self._use(name):
            return False
        with self._lock(name):
            if damaged is not None and self._use(name):
                what = f"warning: the copy of {self.store.url}/{name} in {self._root} was damaged"
                print(f"{what} and is fetched again: {damaged.what}", flush=True)
                self._remove(self.path / name)
            if self._use(name):
                return True
            files, aside = contents(), self.path / _ASIDE / name
            num_bytes = sum(f.size if isinstance(f, RemoteFile) else len(f) for f in files.values())
            self._make_room(num_bytes)
            try:
                self._write(files, aside)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._make_room(num_bytes, until=self._used() // 2)
                self._write_or_explain(files, aside)
            aside.rename(self.path / name)
        RandomAccessFile.forget_removed()
        return True

    def adopt(self, folder: Path, name: str) -> None:
        """Keep a folder that was made here as if it had been fetched, unless one is there."""
        with self._lock(name):
            if not self._use(name):
                self._make_room(_size(folder))
                folder.rename(self.path / name)

    def forget(self, name: str) -> None:
        """Remove a shard from here."""
        with self._lock(name):
            self._remove(self.path / name)

    def _use(self, name: str) -> bool:
        """Whether it is here; if so, it has now been used."""
        try:
            os.utime(self.path / name)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _lock(self, name: str):
        folder = self.path / _ASIDE
        folder.mkdir(parents=True, exist_ok=True)
        number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % _LOCKS
        with (folder / f"{number}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, files: Contents, aside: Path) -> None:
        _delete(aside)  # of a process that died
        for inner, file in files.items():
            path = aside / inner if inner else aside
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file, RemoteFile):
                self.store.download(file.name, path, file.size, file.sha256)
            else:
                path.write_bytes(file)

    def _write_or_explain(self, files: Contents, aside: Path) -> None:
        try:
            self._write(files, aside)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            _delete(aside)
            raise FailureError(
                f"the disk of {self._root} is full, whatever of the store is removed from it",
                found=f"{self._used() / 1e9:.2f} GB kept of {self._limit_bytes / 1e9:.2f} allowed",
                fix="name another place with --run.local, or less with --run.local-gb; then run the"
                " same command again",
            ) from error

    def _make_room(self, num_bytes: int, until: int | None = None) -> None:
        """Remove what was used least recently until so much more is within the limit."""
        for half in (p for at in _DEPTHS for p in self._root.glob(f"{at}/{_ASIDE}/old-*")):
            _delete(half)  # whoever began to is dead, or does so too
        kept = self._kept()
        total = sum(size for _, size, _ in kept) + num_bytes
        for _, size, path in sorted(kept):
            if total <= (self._limit_bytes if until is None else until):
                break
            self._remove(path)
            total -= size

    def _used(self) -> int:
        return sum(size for _, size, _ in self._kept())

    def _kept(self) -> list[tuple[float, int, Path]]:
        """When each shard of all mirrors was used, its bytes, and where it is."""
        found = []
        for path in (p for at in _DEPTHS for p in self._root.glob(f"{at}/*")):
            if _SHARD.fullmatch(path.name) and path.parent.name != _ASIDE:
                with suppress(FileNotFoundError):  # another process removes too
                    found.append((path.stat().st_mtime, _size(path), path))
        return found

    def _remove(self, path: Path) -> None:
        """Remove a shard: its name at once, so that nobody finds half of it."""
        aside = path.parent / _ASIDE / f"old-{path.name}-{os.getpid()}-{time.monotonic_ns()}"
        aside.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            path.rename(aside)
            _delete(aside)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
