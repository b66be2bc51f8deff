"""A cache folder: claiming one, opening it, and what lies in it.

Opening reads `identity.json` only; nothing is listed and no shard is touched.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.cache.body import Body, Part
from stillroom.cache.cached_rows import CachedRow, CachedRows
from stillroom.cache.faults import reach
from stillroom.cache.identity import (
    FORMAT,
    both_sides,
    check_identity,
    differences,
    fingerprint,
    target_specs,
)
from stillroom.cache.local_shards import MANIFEST
from stillroom.cache.reader import ShardReader
from stillroom.cache.remote_shards import shards_of
from stillroom.cache.shard_index import (
    ShardIndex,
    ShardSpec,
    check_files,
    read_shard_index,
    stated_by_shards,
)
from stillroom.cache.tar_body import TarBody
from stillroom.cache.writer import ShardWriter
from stillroom.cache.zarr_body import ZarrBody
from stillroom.codecs import Codec, parse_codec
from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import (
    MAX_BYTES,
    encode_json,
    read_bytes,
    read_json,
    read_json_and_digest,
    sync_folder,
)
from stillroom.random_access import Fetch, read_fetched
from stillroom.tensorfile import parse_tensors
from stillroom.types import Row, ShardId, TargetSpec

BODIES: dict[str, Body] = {"zarr": ZarrBody(), "tar": TarBody()}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
IDENTITY_FILE = "identity.json"
_CODECS = "codecs.safetensors"
_MAX_CODECS_BYTES = 1 << 26


class Cache:
    """One cache folder with a checked identity; `open_cache` and `claim_cache` make it."""

    def __init__(self, path: Path, identity: dict[str, Any], fingerprint: str) -> None:
        self.path, self.identity, self.fingerprint = path, identity, fingerprint
        self.specs: dict[str, TargetSpec] = target_specs(identity)
        self.codecs: dict[str, Codec] = {n: parse_codec(s.codec) for n, s in self.specs.items()}
        geometry = identity["geometry"]
        self.geometry: tuple[int, int] = (geometry["height"], geometry["width"])
        self.body = BODIES[identity["body"]]
        self.shards = shards_of(path)
        self._fitted_on: dict[torch.device, dict[str, dict[str, Tensor]]] = {}

    def __repr__(self) -> str:
        return f"Cache({str(self.path)!r})"

    @property
    def teachers(self) -> list[dict[str, Any]]:
        """What was recorded of the teacher of each target."""
        return [entry["teacher"] for entry in self.identity["targets"].values()]

    # what must be there

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every stored array, in the order of a row."""
        return tuple(
            Part(name=f"{name}.{part}", dtype=dtype, shape=shape)
            for name, spec in self.specs.items()
            for part, (dtype, shape) in self.codecs[name].parts(spec.shape).items()
        )

    @cached_property
    def _rows(self) -> dict[ShardId, int]:
        shards = self.identity["pictures"]["shards"]
        return {ShardId(shard["split"], shard["number"]): shard["rows"] for shard in shards}

    def shard_ids(self, split: str | None = None) -> tuple[ShardId, ...]:
        """Return all shards, or those of a split, in order, whether published or not."""
        return tuple(id_ for id_ in self._rows if split is None or id_.split == split)

    def num_views(self, split: str) -> int:
        """Return how many views of each picture, or of each region of it, are kept."""
        return self.identity["views"]["count"] if split == "train" else 1

    def shard_rows(self, shard_id: ShardId) -> int:
        """Return the number of rows of a shard, all regions and views."""
        return self._rows[shard_id]

    def shard_spec(self, shard_id: ShardId, codecs_sha256: str | None = None) -> ShardSpec:
        """Return what a shard must be; needs the fitted values, or their file's sha256."""
        return ShardSpec(
            shard_id=shard_id,
            fingerprint=self.fingerprint,
            codecs_sha256=codecs_sha256 or self.codecs_sha256,
            num_rows=self.shard_rows(shard_id),
            num_views=self.num_views(shard_id.split),
            kinds={name: spec.kind for name, spec in self.specs.items()},
            parts=self.parts,
            body=self.body,
        )

    # fitted values of the codecs

    @property
    def is_fitted(self) -> bool:
        """Whether the codecs' fitted values are published; without them no shard is written."""
        return (self.path / _CODECS).exists()

    def publish_fitted(self, fitted: dict[str, dict[str, Tensor]]) -> None:
        """Publish fitted values per target and name; the first wins, and all use theirs."""
        assert fitted.keys() <= self.specs.keys(), sorted(fitted)
        tensors = {
            f"{target}/{name}": value.detach().cpu().contiguous()
            for target, values in sorted(fitted.items())
            for name, value in sorted(values.items())
        }
        self.shards.put(_CODECS, safetensors.torch.save(tensors), replace=False)
        reach("codecs-published")

    @property
    def fitted(self) -> dict[str, dict[str, Tensor]]:
        """Fitted values per target (an empty dict where the codec needs none)."""
        return self._fitted[0]

    def decode(
        self, parts: dict[str, Tensor], device: torch.device | str = "cpu"
    ) -> dict[str, Float[Tensor, "b c y x"]]:
        """Return the targets whose parts (`<target>.<part>`, batch axis first) are given, fp32.

        Everything is decoded on `device`; the fitted values are moved there once.
        """
        device = torch.device(device)
        fitted = self._fitted_at(device)
        stored: dict[str, dict[str, Tensor]] = {}
        for name, tensor in parts.items():
            target, _, part = name.partition(".")
            stored.setdefault(target, {})[part] = tensor.to(device, non_blocking=True)
        return {name: self.codecs[name].decode(p, fitted[name]) for name, p in stored.items()}

    def encode(
        self, name: str, target: Float[Tensor, "b c y x"], rows: Sequence[Row]
    ) -> dict[str, Tensor]:
        """Return the parts of some rows of one target, batch axis first, on the target's device."""
        return self.codecs[name].encode(target, rows, self._fitted_at(target.device)[name])

    def error_bound(self, name: str, target: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """Return, per value, how far the codec of a target may at most move it."""
        return self.codecs[name].error_bound(target, self._fitted_at(target.device)[name])

    def promised_error(
        self, name: str, target: Float[Tensor, "b c y x"]
    ) -> Float[Tensor, "b"] | None:
        """Return, per row, what the codec of a target promises of its mean squared error."""
        return self.codecs[name].promised_error(target, self._fitted_at(target.device)[name])

    def _fitted_at(self, device: torch.device) -> dict[str, dict[str, Tensor]]:
        if device not in self._fitted_on:
            self._fitted_on[device] = {
                name: {member: value.to(device) for member, value in values.items()}
                for name, values in self.fitted.items()
            }
        return self._fitted_on[device]

    @property
    def codecs_sha256(self) -> str:
        """The sha256 of `codecs.safetensors`, which every shard repeats."""
        return self._fitted[1]

    @cached_property
    def _fitted(self) -> tuple[dict[str, dict[str, Tensor]], str]:
        path = self.path / _CODECS
        if not path.exists():
            raise UserError(
                f"{path} is missing: the codecs of this cache were never fitted",
                fix="stillroom cache RECIPE",
            )
        data = read_bytes(path, _MAX_CODECS_BYTES)
        fitted: dict[str, dict[str, Tensor]] = {name: {} for name in self.specs}
        for name, value in parse_tensors(data, path).items():
            target, _, member = name.partition("/")
            if target not in fitted:
                raise DamageError(f"{path} has values of no target of this cache", found=name[:80])
            fitted[target][member] = value
        return fitted, hashlib.sha256(data).hexdigest()

    # shards

    def is_published(self, shard_id: ShardId) -> bool:
        """Whether a shard is there; raises DamageError on a bad `shard.json` or file size."""
        is_there = self.shards.has(self._name(shard_id))
        if is_there and not self.shards.is_remote:  # there it is checked when it is fetched
            self._shard_index(shard_id)
        return is_there

    def shard_bytes(self, shard_id: ShardId) -> int:
        """Return the bytes of a published shard's files; raises DamageError if it is bad."""
        if (stated := self.shards.stated([self._name(shard_id)])[0]) and stated[1]:
            return stated[1]
        return sum(file.size for file in self._shard_index(shard_id)[0].files.values())

    def missing(self) -> tuple[ShardId, ...]:
        """Return the shards without a published folder, from one listing."""
        ids = {self._name(shard_id): shard_id for shard_id in self._rows}
        return tuple(ids[name] for name in self.shards.missing(list(ids)))

    def writer(self, shard_id: ShardId, *, level: int = 1) -> ShardWriter:
        """Return a writer (a context manager) of one shard; `level` is zstd's."""
        spec = self.shard_spec(shard_id)
        return ShardWriter(self.path, spec, self.shards.publish, level=level)

    def reader(self, shard_id: ShardId, *, check: bool = True) -> ShardReader:
        """Open a published shard; raises DamageError if it is absent or bad."""
        spec, fetch = self.shard_spec(shard_id), self.fetcher(shard_id)
        opened = partial(ShardReader, self.path / spec.folder, spec, check=check, fetch=fetch)
        return read_fetched(fetch, opened)

    def fetcher(self, shard_id: ShardId) -> Fetch:
        """Return what has a shard's files here."""
        return partial(self.shards.fetch, self._name(shard_id))

    def quarantine(self, shard_id: ShardId, why: object) -> Path | str | None:
        """Move a bad shard away, the reason beside it; None if another process has done so."""
        return self.shards.quarantine(self._name(shard_id), str(why))

    def quarantine_bad(self) -> tuple[Path | str, ...]:
        """Quarantine every shard that `is_published` finds bad; returns where they lie now.

        Raises DamageError where the fitted values are at fault, which no shard can help.
        """
        stated, places = stated_by_shards(self.path, self.fingerprint), []
        if stated is not None and stated != (self.fingerprint, self.codecs_sha256):
            raise DamageError(
                f"{self.path / _CODECS} is not the file that the shards were made with",
                found=self.codecs_sha256,
                wanted=stated[1],
                fix=f"restore it, or stillroom check-cache {self.path} RECIPE --repair",
            )
        for shard_id in () if self.shards.is_remote else self._rows:
            try:
                self.is_published(shard_id)
            except DamageError as error:
                places.append(self.quarantine(shard_id, error))
        return tuple(place for place in places if place is not None)

    # rows, for people

    def __len__(self) -> int:
        return sum(map(self.shard_rows, self._rows))

    def __getitem__(self, i: int) -> CachedRow:
        """Return row i of all shards in order, decoded. Raises UserError where it is not there yet,
        DamageError where it is damaged, IndexError past the end.
        """
        return self._cached_rows[i]

    def rows(self, key: str) -> tuple[CachedRow, ...]:
        """Return every row (region, view) of a picture, decoded; needs a complete cache."""
        return self._cached_rows.of_key(key)

    @cached_property
    def _cached_rows(self) -> CachedRows:
        num_rows = {shard_id: self.shard_rows(shard_id) for shard_id in self._rows}
        return CachedRows(num_rows, self._open_published, self.decode)

    def _open_published(self, shard_id: ShardId) -> ShardReader:
        if not self.shards.has(self._name(shard_id)):
            raise UserError(
                f"shard {shard_id} of {self.path} is not published yet",
                found=f"{len(self.missing())} of {len(self._rows)} shards missing",
                fix="finish stage 1: stillroom cache RECIPE",
            )
        return self.reader(shard_id)

    # completion

    @property
    def is_complete(self) -> bool:
        """Whether a manifest of this cache lies there and no shard is missing."""
        path = self.path / MANIFEST
        if not path.exists():
            return False
        return read_json(path).get("fingerprint") == self.fingerprint and not self.missing()

    def finalize(self) -> bool:
        """Write the manifest if every shard is published; raises DamageError if one is bad."""
        if self.missing():
            return False
        reach("manifest-next")
        path, data = self.path / MANIFEST, self.manifest()
        if not path.exists() or read_bytes(path, MAX_BYTES) != data:
            self.shards.put(MANIFEST, data)
        return True

    def manifest(self) -> bytes:
        """Return what `manifest.json` must hold; raises DamageError if a shard is absent or bad."""
        stated = self.shards.stated([self._name(shard_id) for shard_id in self._rows])
        manifest = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "codecs_sha256": self.codecs_sha256,
            "rows": len(self),
            "shards": [
                {
                    "split": shard_id.split,
                    "number": shard_id.number,
                    "rows": self.shard_rows(shard_id),
                    "sha256": self._shard_index(shard_id)[1] if known is None else known[0],
                }
                for shard_id, known in zip(self._rows, stated, strict=True)
            ],
        }
        return encode_json(manifest)

    def _name(self, shard_id: ShardId) -> str:
        assert shard_id in self._rows, shard_id
        return f"{shard_id}{self.body.suffix}"

    def _shard_index(self, shard_id: ShardId) -> tuple[ShardIndex, str]:
        spec, folder = self.shard_spec(shard_id), self.path / self._name(shard_id)

        def read() -> tuple[ShardIndex, str]:
            shard_index, sha256 = read_shard_index(folder, spec)
            check_files(folder, spec, shard_index)
            return shard_index, sha256

        return read_fetched(self.fetcher(shard_id), read)


def open_cache(path: Path | str) -> Cache:
    """Open a cache folder. Raises UserError if there is none, DamageError if it is damaged."""
    shards_of(path := Path(path)).refresh()
    try:
        identity, sha256 = read_json_and_digest(path / IDENTITY_FILE)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} is not a cache: it has no {IDENTITY_FILE}",
            fix="stillroom cache RECIPE",
        ) from None
    check_identity(identity)
    if identity["body"] not in BODIES:
        raise UserError("no such body", found=identity["body"], wanted=" or ".join(BODIES))
    return Cache(path, identity, sha256)


def claim_cache(root: Path, name: str, identity: dict[str, Any]) -> Cache:
    """Make or join `root/<name>-<fingerprint8>`; of several processes one makes it and all open it.

    A `root` that is a cache, or has the name of this one, is itself the folder. Raises UserError,
    with both sides, where the folder has another identity.
    """
    if not _NAME.fullmatch(name):
        raise UserError("not a name for a cache", found=repr(name), wanted="letters, digits, _ . -")
    check_identity(identity)
    path = root / f"{name}-{fingerprint(identity)[:8]}"
    if (root / IDENTITY_FILE).exists() or root.name == path.name:
        path = root
    shards_of(path).refresh()
    if not (path / IDENTITY_FILE).exists():
        for folder in (path, path / "tmp", path / "quarantine"):
            folder.mkdir(parents=True, exist_ok=True)
        shards_of(path).put(IDENTITY_FILE, encode_json(identity), replace=False)
        reach("identity-linked")
        sync_folder(path.parent)
    cache = open_cache(path)
    if different := differences(cache.identity, identity):
        found, wanted = both_sides(different)
        raise UserError(
            f"{path} was made for something else",
            found=found,
            wanted=wanted,
            fix=f"--run.cache {path.absolute().parent} (where each has its own), or move it away"
            if path == root
            else "give the cache another name, or move that folder away",
        )
    return cache
