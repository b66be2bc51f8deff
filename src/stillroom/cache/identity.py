"""`identity.json`: what was asked of whom.

Two shards belong together if and only if their identities are equal. A number in an identity sizes
allocations later, so everything is checked here, when it is made and when it is read.
"""

import json
import math
import re
from typing import Any

from stillroom.codecs import parse_codec
from stillroom.errors import UserError
from stillroom.jsonfile import digest
from stillroom.types import KEY, TargetSpec

FORMAT = "stillroom cache 1"
_MEMBERS = {
    "format", "body", "pictures", "geometry", "views", "targets", "calibration",
}  # fmt: skip
_SHARD_MEMBERS = {"split", "number", "rows", "pictures"}
_TARGET_MEMBERS = {"teacher", "shape", "stride", "kind", "codec"}
_TARGET = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_TARGETS = 64  # each keeps a file of every open shard open
_MAX_VALUES = 1 << 26  # of one row of one target: 128 MiB in fp16
_MAX_PIXELS = 1 << 16  # height or width
_MAX_COUNT = 10_000_000  # rows of a shard, all views


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
        _demand(identity.keys() == _MEMBERS, f"members {sorted(identity)}")
        geometry = identity["geometry"]
        _demand(geometry.keys() == {"height", "width"}, f"geometry {geometry!r:.80}")
        _demand(
            all(_is_in(v, 1, _MAX_PIXELS) for v in geometry.values()), f"geometry {geometry!r:.80}"
        )
        _check_pictures(identity["pictures"], identity["views"])
        _demand(isinstance(identity["body"], str), f"body {identity['body']!r:.80}")
        _demand(0 < len(identity["targets"]) <= _MAX_TARGETS, f"{len(identity['targets'])} targets")
        for name, entry in identity["targets"].items():
            _check_target(name, entry)
        _demand(isinstance(identity["calibration"], list), "calibration is no list")
        for key in identity["calibration"]:
            _demand(KEY.fullmatch(key) is not None, f"calibration key {key!r:.80}")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"not an identity: {error!r}") from None


def _check_pictures(pictures: dict[str, Any], views: dict[str, Any]) -> None:
    _demand(pictures.keys() == {"digest", "shards"}, f"pictures' members {sorted(pictures)}")
    _demand(isinstance(pictures["digest"], str), "no digest of the pictures")
    shards = pictures["shards"]
    _demand(isinstance(shards, list) and len(shards) > 0, "no shards")
    ids = [(shard["split"], shard["number"]) for shard in shards]
    _demand(ids == sorted(set(ids)), "shards are not in order")
    for shard in shards:
        _demand(shard["split"] in ("train", "val"), f"split {shard['split']!r:.80}")
        _demand(_is_in(shard["number"], 0, 999_999), f"shard number {shard['number']!r:.80}")
        _demand(_is_in(shard["rows"], 1, _MAX_COUNT), f"rows {shard['rows']!r:.80}")
        _demand(shard.keys() == _SHARD_MEMBERS, f"members {sorted(shard)!r:.200} of a shard")
    _demand(_is_in(views["count"], 1, _MAX_COUNT), f"views {views!r:.200}")


def _check_target(name: str, entry: dict[str, Any]) -> None:
    _demand(_TARGET.fullmatch(name) is not None, f"target name {name!r:.80}")
    _demand(entry.keys() == _TARGET_MEMBERS, f"members {sorted(entry)} of target {name}")
    shape = entry["shape"]
    _demand(isinstance(shape, list) and len(shape) == 3, f"shape {shape!r:.80} of {name}")
    _demand(all(_is_in(size, 1, _MAX_VALUES) for size in shape), f"shape {shape!r:.80} of {name}")
    _demand(math.prod(shape) <= _MAX_VALUES, f"shape {shape!r:.80} of {name}")
    _demand(_is_in(entry["stride"], 1, _MAX_PIXELS), f"stride {entry['stride']!r:.80} of {name}")
    _demand(entry["kind"] in ("logits", "features"), f"kind {entry['kind']!r:.80} of {name}")
    _demand(isinstance(entry["teacher"], dict), f"teacher of {name}")
    parse_codec(entry["codec"])


def _demand(is_good: bool, found: str) -> None:
    if not is_good:
        raise UserError("not an identity that this version takes", found=found)


def _is_in(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def differences(found: Any, wanted: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted name, found, wanted) where two JSON values differ; absent is None."""
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
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
