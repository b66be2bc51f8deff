"""Stage 1 where the system refuses: no space, no permission, no further file."""

import ctypes
import errno
import os
import resource
import subprocess
from pathlib import Path
from typing import Any

from attempts import Attempt, World
from file_system import refuse

# what is done in this order; SECOND is the second shard's folder in tmp/
KINDS = (
    "mkdir ",
    "open .identity.json",
    "link .identity.json",
    "open .codecs",
    "mkdir SECOND",
    "open SECOND/",
    "write SECOND/",
    "fsync SECOND/",
    "open SECOND/.shard.json",
    "rename SECOND/.shard.json",
    "open .manifest.json",
)


def full_disk(world: World, many: bool) -> dict[str, Any]:
    """No space from one write on: the first of each of some kinds, or each of all."""
    lines = world.events()
    chosen = {f"{n} {line}": n for n, line in enumerate(lines)}
    if not many:
        kinds = [kind.replace("SECOND", f"tmp/{world.second}") for kind in KINDS]
        chosen = {kind: _first(lines, kind) for kind in kinds}
    outcomes = {}
    for name, n in chosen.items():
        attempt = world.attempt()
        status = attempt.run(lambda root=attempt.root, n=n: refuse(root, errno.ENOSPC, n))
        outcomes[name] = attempt.outcome(status)
    return outcomes


def _first(lines: list[str], start: str) -> int:
    return next(n for n, line in enumerate(lines) if line.startswith(start))


def quarantine(world: World, many: bool) -> dict[str, Any]:
    """A damaged shard is set aside, and there is no space to write why."""
    attempt = world.attempt()
    assert attempt.run() == 0
    path = attempt.cache.path / world.second / "shard.json"
    path.write_bytes(path.read_bytes()[:-9])
    status = attempt.run(lambda: refuse(attempt.root, errno.ENOSPC, 2))
    held = [
        path.name.startswith(world.second) for path in (attempt.cache.path / "quarantine").iterdir()
    ]
    for path in (attempt.cache.path / "quarantine").glob("*/shard.json"):
        path.unlink()  # damaged on purpose; `differences` takes any other for a fault
    return {"quarantine": attempt.outcome(status, held=held)}


def open_files(world: World, many: bool) -> dict[str, Any]:
    """Few files may be open, up to as many as two shards need."""
    open_now = len(list(Path("/proc/self/fd").iterdir())) - 1
    few = open_now + (6 if world.body == "zarr" else 2)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    outcomes = {}
    for limit in range(few, few + 13, 1 if many else 6):
        attempt = world.attempt()
        status = attempt.run(lambda n=limit: resource.setrlimit(resource.RLIMIT_NOFILE, (n, most)))
        outcomes[str(limit)] = attempt.outcome(status)
    return outcomes


def read_only(world: World, many: bool) -> dict[str, Any]:
    """Folders that may not be written: of caches, one cache, its tmp/; and a finished cache."""
    outcomes = {}
    for name in ("caches", "cache", "tmp", "finished"):
        attempt = world.attempt()
        attempt.root.mkdir()
        if name != "caches":
            assert attempt.run() == 0
        if name in ("cache", "tmp"):
            shard = attempt.cache.path / world.second
            shard.rename(attempt.root.with_suffix(".moved"))
        cache = attempt.cache.path if name != "caches" else attempt.root
        folder = cache / "tmp" if name == "tmp" else cache
        folder.chmod(0o555)
        status = attempt.run(_obey_permissions)
        folder.chmod(0o755)
        outcomes[name] = attempt.outcome(status)
    return outcomes


def _obey_permissions() -> None:
    """Give up root's right to write where permissions forbid it (CAP_DAC_OVERRIDE and its kin)."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for word in (0, 1, 2):  # effective, permitted, inheritable; capabilities 0 to 31
        sets[word] &= ~0b1110
    assert libc.capset(header, sets) == 0


def small_disks(world: World, many: bool) -> dict[str, Any]:
    """A real tmpfs, full at many different moments; then made larger. The preflight is off."""
    outcomes = {}
    for kilobytes in range(64, 4096, 192):
        attempt = world.attempt(preflight=False)
        with _Disk(attempt, kilobytes) as disk:
            status = attempt.run()
            disk.grow(16384)
            outcomes[str(kilobytes)] = attempt.outcome(status)
    return outcomes


def foreseen(world: World, many: bool) -> dict[str, Any]:
    """The same with the preflight on: refused before the first shard, or finished."""
    outcomes = {}
    for kilobytes in range(256, 6144, 512):
        attempt = world.attempt()
        with _Disk(attempt, kilobytes) as disk:
            status = attempt.run()
            disk.grow(16384)
            outcomes[str(kilobytes)] = attempt.outcome(status)
    return outcomes


class _Disk:
    """A tmpfs in the place of an attempt's folder of caches."""

    def __init__(self, attempt: Attempt, kilobytes: int) -> None:
        self._path: Path = attempt.root
        self._path.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(self._path))

    def grow(self, kilobytes: int) -> None:
        _mount("-o", f"remount,size={kilobytes}k", str(self._path))

    def __enter__(self) -> "_Disk":
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self._path)], check=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)
