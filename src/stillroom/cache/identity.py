"""`identity.json`: what was asked of whom.

Two shards belong together if and only if their identities are equal. A number in an identity sizes
allocations later, so everything is checked here, when it is made and when it is read.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from stillroom.codecs import parse_codec
from stillroom.errors import UserError
from stillroom.jsonfile import Declared, Sha256, digest
from stillroom.types import Key, Kind, ShardNumber, Split, TargetSpec

FORMAT = "stillroom cache 1"
_MAX_VALUES = 1 << 26  # of one row of one target: 128 MiB in fp16
_MAX_COUNT = 10_000_000  # rows of a shard, all views

_Count = Annotated[int, msgspec.Meta(ge=1, le=_MAX_COUNT)]
_Pixels = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
_Cells = Annotated[int, msgspec.Meta(ge=1, le=_MAX_VALUES)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]*\Z", max_length=64)]


class _Shard(Declared, frozen=True):
    split: Split
    number: ShardNumber
    rows: _Count
    pictures: Sha256


class _Pictures(Declared, frozen=True):
    digest: Sha256
    shards: Annotated[list[_Shard], msgspec.Meta(min_length=1)]


class _Geometry(Declared, frozen=True):
    height: _Pixels
    width: _Pixels


class _Views(msgspec.Struct, frozen=True):  # its other members are the fields of its class
    count: _Count
    regions: bool


class _Target(Declared, frozen=True):
    teacher: dict[str, Any]
    shape: tuple[_Cells, _Cells, _Cells]
    stride: _Pixels
    kind: Kind
    codec: str


class _Identity(Declared, frozen=True):
    format: str
    body: str
    pictures: _Pictures
    geometry: _Geometry
    views: _Views
    # each target keeps a file of every open shard open
    targets: Annotated[dict[_Name, _Target], msgspec.Meta(min_length=1, max_length=64)]
    calibration: list[Key]


def make_identity(
    pictures: dict[str, Any],
    geometry: tuple[int, int],
    views: dict[str, Any],
    targets: dict[str, dict[str, Any]],
    calibration: list[str],
    body: str = "zarr",
) -> dict[str, Any]:
    """Return the body of `identity.json` (docs/format.md, section 3); raises UserError.

    `pictures` is {"digest", "shards": [{"split", "number", "rows", "pictures"}]}, `geometry` (h, w)
    in pixels, `views` {"class", "count", "regions", ...}, `targets` per name {"teacher", "shape",
    "stride", "kind", "codec"}.
    """
    identity = {
        "format": FORMAT,
        "body": body,
        "pictures": pictures,
        "geometry": {"height": geometry[0], "width": geometry[1]},
        "views": views,
        "targets": targets,
        "calibration": calibration,
    }
    identity = plain(identity)
    check_identity(identity)
    return identity


def describe_target(spec: TargetSpec, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `identity.json` says of a target; `teacher` is what made it."""
    return {
        "teacher": teacher,
        "shape": list(spec.shape),
        "stride": spec.stride,
        "kind": spec.kind,
        "codec": spec.codec,
    }


def fingerprint(identity: dict[str, Any]) -> str:
    """Return the sha256 member that `identity.json` has."""
    return digest(identity)


def plain(value: Any) -> Any:
    """Return a value as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value, allow_nan=False))


def target_specs(identity: dict[str, Any]) -> dict[str, TargetSpec]:
    """Return the targets of a checked identity, by name."""
    return {
        name: TargetSpec(
            name=name,
            shape=tuple(entry["shape"]),
            stride=entry["stride"],
            kind=entry["kind"],
            codec=entry["codec"],
        )
        for name, entry in sorted(identity["targets"].items())
    }


def check_identity(identity: dict[str, Any]) -> None:
    """Raise UserError on members, names or numbers that this version does not take."""
    if identity.get("format") != FORMAT:
        raise UserError("not a cache of this version", found=identity.get("format"), wanted=FORMAT)
    try:
        problem = _problem(msgspec.convert(identity, _Identity))
    except msgspec.ValidationError as error:
        problem = str(error)  # it names the member
    if problem is not None:
        raise UserError("not an identity that this version takes", found=problem)


def _problem(identity: _Identity) -> str | None:
    """Say which members do not fit one another, or None; UserError for a codec that is not ours."""
    shards = identity.pictures.shards
    ids = [(shard.split, shard.number) for shard in shards]
    if ids != sorted(set(ids)):
        return "shards are not in order"
    for name, target in identity.targets.items():
        if math.prod(target.shape) > _MAX_VALUES:
            return f"a shape of {target.shape} of {name}"
        parse_codec(target.codec)
    return None


def differences(found: Any, wanted: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted name, found, wanted) where two JSON values differ; absent is None."""
    sides = (found, wanted)
    if all(isinstance(s, list) and all(isinstance(v, dict) for v in s) for s in sides):
        found, wanted = ({f"{i}": v for i, v in enumerate(side)} for side in sides)
    if isinstance(found, dict) and isinstance(wanted, dict):
        result = []
        for member in sorted(found.keys() | wanted.keys()):
            inner = f"{name}.{member}" if name else member
            result += differences(found.get(member), wanted.get(member), inner)
        return result
    same = type(found) is type(wanted) and found == wanted
    return [] if same else [(name, found, wanted)]


def both_sides(pairs: list[tuple[str, Any, Any]], limit: int = 5) -> tuple[str, str]:
    """Return what was found and what was wanted as text, for an error."""
    more = [f"and {len(pairs) - limit} more"] if len(pairs) > limit else []
    found = [f"{name} = {_short(value)}" for name, value, _ in pairs[:limit]]
    wanted = [f"{name} = {_short(value)}" for name, _, value in pairs[:limit]]
    return "; ".join(found + more), "; ".join(wanted + more)


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    text = re.sub(r'"([0-9a-f]{12})[0-9a-f]{52}"', r"\1...", text)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
