"""Where the shards of a cache are published: in its folder, by the name of a folder there.

A cache in a store has `remote_shards` instead, which does the same there.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from stillroom.cache.faults import reach
from stillroom.errors import DamageError
from stillroom.jsonfile import rename, sync_folder, write_bytes, write_json

MANIFEST = "manifest.json"
_FEW = 100  # shards that are looked for one by one


@runtime_checkable
class Shards(Protocol):
    """The published shards of a cache, `train-000000.zarr`, and its small files, by name."""

    is_remote: bool

    def refresh(self) -> None:
        """Have the small files as they are now."""
        ...

    def has(self, name: str) -> bool:
        """Whether a shard is published."""
        ...

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return those that are not published, from one listing."""
        ...

    def fetch(self, name: str, damaged: DamageError | None = None) -> bool:
        """Have the folder of a published shard here, a copy that is damaged anew; True where it had
        to be brought.
        """
        ...

    def fetch_again(self, name: str) -> None:
        """Have it here as it is published now, whatever was here before."""
        ...

    def stated(self, names: Sequence[str]) -> list[tuple[str, int] | None]:
        """Return the sha256 and the bytes of each that are known without its `shard.json`."""
        ...

    def publish(self, folder: Path, name: str) -> bool:
        """Publish a finished folder; False where another was first."""
        ...

    def quarantine(self, name: str, why: str) -> Path | str | None:
        """Publish a shard no longer, and say where it is kept; None if it was not published."""
        ...

    def put(self, name: str, data: bytes, *, replace: bool = True) -> None:
        """Write a small file whole; without `replace`, one that is there stays."""
        ...

    def remove(self, name: str) -> None:
        """Remove a small file."""
        ...

    def garbage(self) -> list[str]:
        """Return what nobody will ever publish and lies elsewhere than in the cache's folder."""
        ...

    def remove_garbage(self) -> list[str]:
        """Remove that and return it."""
        ...


class LocalShards:
    """See `Shards`; a shard is published by a rename."""

    is_remote = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def refresh(self) -> None: ...

    def has(self, name: str) -> bool:
        return (self._path / name).exists()

    def missing(self, names: Sequence[str]) -> list[str]:
        present = {entry.name for entry in os.scandir(self._path)}
        absent = [name for name in names if name not in present]
        # a network file system may show an old listing: where few are lacking, each is asked for
        return [name for name in absent if len(absent) > _FEW or not self.has(name)]

    def fetch(self, name: str, damaged: DamageError | None = None) -> bool:
        return False

    def fetch_again(self, name: str) -> None: ...

    def stated(self, names: Sequence[str]) -> list[tuple[str, int] | None]:
        return [None] * len(names)

    def publish(self, folder: Path, name: str) -> bool:
        try:
            rename(folder, self._path / name)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        reach("renamed")
        sync_folder(self._path)
        reach("parent-synced")
        return True

    def quarantine(self, name: str, why: str) -> Path | str | None:
        place = self._path / "quarantine" / f"{name}-{os.urandom(4).hex()}"
        place.parent.mkdir(exist_ok=True)
        self.remove(MANIFEST)
        try:
            rename(self._path / name, place)
        except FileNotFoundError:
            return None
        reach("quarantined")
        sync_folder(self._path)
        reason = {"shard": name.partition(".")[0], "why": why}
        write_json(place.with_name(f"{place.name}.json"), reason)
        return place

    def put(self, name: str, data: bytes, *, replace: bool = True) -> None:
        write_bytes(self._path / name, data, replace=replace)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def garbage(self) -> list[str]:
        return []

    def remove_garbage(self) -> list[str]:
        return []
