"""A file system that refuses: every write, new name or flush below a folder, from one on.

The audit hook sees whoever opens, links or renames (zarr too) and stays for the life of the
process: for forked children only.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stillroom.cache.frames as frames

_RANDOM = re.compile(r"\.\d+\.[0-9a-f]{8}\.tmp|\.[0-9a-f]{32}\.partial|-\w+-\d+-[0-9a-f]{8}")


def watch(root: Path, step: Callable[[str], object]) -> None:
    """Call `step` before each of these events with what and where: `open .identity.json`."""
    base = str(root)

    def note(what: str, path: Any) -> None:
        path = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if path.startswith(base):
            below = path.removeprefix(base).strip("/").partition("/")[2]
            step(f"{what} {_RANDOM.sub('', below)}")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if (set("wxa+") & set(mode)) if isinstance(mode, str) else (flags & os.O_ACCMODE):
                note("open", path)
        elif event in ("os.mkdir", "os.link", "os.rename"):
            note(event.removeprefix("os."), arguments[0])

    sys.addaudithook(hook)
    write, fsync = frames.HashedFile.write, os.fsync

    def writing(self: Any, data: Any) -> None:
        note("write", self._file.name)
        write(self, data)

    def syncing(descriptor: int) -> None:
        note("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    frames.HashedFile.write = writing
    os.fsync = syncing


def refuse(root: Path, number: int, first: int) -> None:
    """Refuse the event number `first` (from 0) and all after it with an OSError."""
    seen = []

    def step(_: str) -> None:
        seen.append(1)
        if len(seen) > first:
            raise OSError(number, os.strerror(number))

    watch(root, step)


def send_at_event(root: Path, first: int, number: int) -> None:
    """Send this process a signal at the event number `first` (from 0)."""
    seen = []

    def step(_: str) -> None:
        seen.append(1)
        if len(seen) == first + 1:
            os.kill(os.getpid(), number)

    watch(root, step)


def list_events(root: Path, log: Path) -> None:
    """Write every event as a line of a file."""
    file = log.open("w", buffering=1)
    watch(root, lambda text: print(text, file=file))
