"""The shards of a cache in a store: `train-000000.<nonce>.zarr/` and a pointer to it, `.json`.

The pointer is put only where there is none, so the first writer wins; a shard without one does not
exist. A finished local cache that was copied into a store, or is served over http(s), has none:
there `manifest.json` says what is published. Layout: docs/format.md, section 3.
"""

import os
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec

from stillroom.cache.local_shards import MANIFEST, LocalShards, Shards
from stillroom.cache.shard_index import FILE, ShardIndex
from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import (
    Count,
    Declared,
    Sha256,
    decode_json,
    encode_json,
    read_json,
    read_json_and_digest,
)
from stillroom.remote.mirror import Contents, Mirror, RemoteFile, mirror_of

SMALL = ("identity.json", "codecs.safetensors", MANIFEST, "audit.json")
_LOOK_S = 5.0  # a shard that is not there is looked for again after so long
_SILENT = timedelta(days=1)  # an upload without a pointer whose writer may be alive
_UPLOAD = re.compile(r"((?:train|val)-\d{6})\.([0-9a-f]{16})\.(zarr|wds)")


class _Pointer(Declared, frozen=True):
    nonce: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{16})?\Z")]  # "" = a plain copy
    shard: Sha256  # of its shard.json
    size: Count  # bytes of all its files

    def folder(self, name: str) -> str:
        stem, _, suffix = name.partition(".")
        return f"{stem}.{self.nonce}.{suffix}" if self.nonce else name


def shards_of(path: Path) -> Shards:
    """Return where the shards of the cache in a folder are published: there, or in a store."""
    mirror = mirror_of(path)
    return LocalShards(path) if mirror is None else RemoteShards(path, mirror)


def refresh_caches(root: Path) -> None:
    """Have here the identities of the caches in a store that a folder mirrors, if it does."""
    mirror = mirror_of(root)
    if mirror is None or mirror.refresh(*SMALL) or not mirror.store.is_listable:
        return
    there = mirror.store.names()[1]
    for name in {*there, *(path.parent.name for path in root.glob("*/identity.json"))}:
        if (child := mirror_of(root / name)) is not None:
            child.refresh(*SMALL)


class RemoteShards:
    """See `Shards`; a shard is published by its pointer."""

    is_remote = True

    def __init__(self, path: Path, mirror: Mirror) -> None:
        self._path, self._mirror, self._store = path, mirror, mirror.store
        self._look_at: dict[str, float] = {}

    def refresh(self) -> None:
        self._mirror.refresh(*SMALL)

    def has(self, name: str) -> bool:
        if time.monotonic() < self._look_at.get(name, 0.0):
            return False
        found = self._pointers([name])[0] is not None
        if not found:
            self._look_at[name] = time.monotonic() + _LOOK_S
        return found

    def missing(self, names: Sequence[str]) -> list[str]:
        plain = self._plain()
        if not self._store.is_listable:
            return [name for name in names if name not in plain]
        files, folders = map(set, self._store.names())
        return [n for n in names if _file(n) not in files and not (n in plain and n in folders)]

    def fetch(self, name: str, damaged: DamageError | None = None) -> bool:
        return self._mirror.fetch(name, lambda: self._contents(name), damaged)

    def fetch_again(self, name: str) -> None:
        self._mirror.forget(name)
        self.fetch(name)

    def stated(self, names: Sequence[str]) -> list[tuple[str, int] | None]:
        return [None if p is None else (p.shard, p.size) for p in self._pointers(names)]

    def publish(self, folder: Path, name: str) -> bool:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        sha256 = read_json_and_digest(folder / FILE)[1]
        pointer = _Pointer(
            nonce=os.urandom(8).hex(), shard=sha256, size=size - _index_bytes(folder)
        )
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            inner = file.relative_to(folder).as_posix()
            self._store.put(f"{pointer.folder(name)}/{inner}", file)
        won = self._store.put(_file(name), encode_json(pointer), replace=False)
        self._look_at.pop(name, None)
        if won:
            self._mirror.adopt(folder, name)
        return won

    def quarantine(self, name: str, why: str) -> Path | str | None:
        if (data := self._store.get(_file(name))) is None:
            if name in self._plain():
                raise UserError(
                    f"{self._store.url} is a copy of a cache, which is mended where it was made",
                    found=why,
                    fix="stillroom check-cache CACHE RECIPE --repair there, then copy it again",
                )
            return None
        stem, text = name.partition(".")[0], data.decode(errors="replace")
        place = f"quarantine/{stem}.{os.urandom(4).hex()}.json"
        self.remove(MANIFEST)
        self._store.put(place, encode_json({"shard": stem, "why": why, "pointer": text}))
        self._store.delete([_file(name)])
        self._mirror.forget(name)
        return f"{self._store.url}/{place}"

    def put(self, name: str, data: bytes, *, replace: bool = True) -> None:
        self._store.put(name, data, replace=replace)
        self._mirror.refresh(name)

    def remove(self, name: str) -> None:
        self._store.delete([name])
        self._mirror.refresh(name)

    def garbage(self) -> list[str]:
        if not self._store.is_listable:
            return []
        files, folders = self._store.names()
        uploads = [found for folder in folders if (found := _UPLOAD.fullmatch(folder))]
        stems = list(dict.fromkeys(f"{u[1]}.{u[3]}" for u in uploads if f"{u[1]}.json" in files))
        known = dict(zip(stems, self._pointers(stems), strict=True))
        kept = self._quarantined()
        found = []
        for upload in uploads:
            pointer = known.get(f"{upload[1]}.{upload[3]}")
            is_named = (pointer is not None and pointer.nonce == upload[2]) or upload[2] in kept
            if not is_named and (pointer is not None or self._is_silent(upload[0])):
                found.append(upload[0])
        return found

    def remove_garbage(self) -> list[str]:
        found = self.garbage()
        for folder in found:
            self._store.delete(list(self._store.below(folder)))
        return [f"{self._store.url}/{folder}" for folder in found]

    def _is_silent(self, folder: str) -> bool:
        return max(self._store.below(folder).values()) < datetime.now(UTC) - _SILENT

    def _quarantined(self) -> set[str]:
        """The nonces of what is kept in quarantine."""
        names = [f"quarantine/{name}" for name in self._store.names("quarantine")[0]]
        texts = [data or b"" for data in self._store.get_many(names)]
        return {n.decode() for text in texts for n in re.findall(rb'nonce\\":\\"(\w{16})', text)}

    def _contents(self, name: str) -> Contents:
        pointer = self._pointers([name])[0]
        if pointer is None:
            raise DamageError(
                f"there is no {self._store.url}/{_file(name)}: the shard is not there"
            )
        folder = pointer.folder(name)
        data = self._mirror.get_json(f"{folder}/{FILE}", pointer.shard)
        index: ShardIndex = decode_json(data, f"{self._store.url}/{folder}/{FILE}", ShardIndex)
        for inner in index.files:
            if ".." in PurePosixPath(inner).parts or inner.startswith("/"):
                raise DamageError(f"{self._store.url}/{folder}/{FILE} names no file", found=inner)
        files = {n: RemoteFile(f"{folder}/{n}", f.size, f.sha256) for n, f in index.files.items()}
        return {FILE: data, **files}

    def _pointers(self, names: Sequence[str]) -> list[_Pointer | None]:
        read = self._store.get_many([_file(name) for name in names])
        found: list[_Pointer | None] = []
        for name, data in zip(names, read, strict=True):
            where = f"{self._store.url}/{_file(name)}"
            if data is not None:
                found.append(_decoded(data, where))
            else:
                plain = self._plain().get(name)  # of an old manifest, maybe
                is_there = plain is not None and self._store.get(f"{name}/{FILE}") is not None
                found.append(plain if is_there else None)
        return found

    def _plain(self) -> dict[str, _Pointer]:
        """What the manifest says of shards that have no pointer."""
        try:
            manifest, identity = (read_json(self._path / name) for name in (MANIFEST, SMALL[0]))
        except FileNotFoundError:
            return {}
        suffix = {"zarr": ".zarr", "tar": ".wds"}[identity["body"]]
        return {
            f"{shard['split']}-{shard['number']:06d}{suffix}": _Pointer(
                nonce="", shard=shard["sha256"], size=0
            )
            for shard in manifest["shards"]
        }


def _decoded(data: bytes, where: str) -> _Pointer:
    return decode_json(data, where, _Pointer)


def _file(name: str) -> str:
    return f"{name.partition('.')[0]}.json"


def _index_bytes(folder: Path) -> int:
    return (folder / FILE).stat().st_size
