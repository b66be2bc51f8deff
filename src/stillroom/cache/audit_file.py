"""`audit.json`: how far the teachers of a cache are from answering a transformed picture with their
transformed answer (docs/format.md, section 3).
"""

from typing import Annotated

import msgspec

from stillroom.cache.folder import Cache
from stillroom.cache.identity import FORMAT
from stillroom.errors import DamageError
from stillroom.jsonfile import Count, Declared, Sha256, encode_json, read_json

AUDIT_FILE = "audit.json"
CONTROL, MIRROR = "control", "mirror"
# Of the relative error. Published of a detector's features: cosine .867 where mirrored, which is a
# relative error of about .5, and .9999, about .014, where not. An error of .05 is a four-hundredth
# of the target's energy, and unlike stochastic noise it does not average out.
MOST_ERROR = 0.05

_Error = Annotated[float, msgspec.Meta(ge=0)]
_Cosine = Annotated[float, msgspec.Meta(ge=-1.001, le=1.001)]


class Equivariance(Declared, frozen=True):
    """T(f(x)) against f(T(x)) over all compared cells of all rows.

    `error` is the L2 norm of the difference by that of the distances of T(f(x)) from each channel's
    mean; `cosine` is of the two as they stand.
    """

    error: _Error
    cosine: _Cosine

    @property
    def passes(self) -> bool:
        """Whether one may stand for the other."""
        return self.error <= MOST_ERROR


class Audit(Declared, frozen=True):
    """The content of an `audit.json`, as it lies there."""

    format: str
    fingerprint: Sha256
    rows: Count
    targets: dict[str, dict[str, Equivariance]]  # per target and transform


def write_audit(cache: Cache, rows: int, targets: dict[str, dict[str, Equivariance]]) -> Audit:
    """Store an audit with its cache, in the place of an earlier one."""
    audit = Audit(format=FORMAT, fingerprint=cache.fingerprint, rows=rows, targets=targets)
    cache.shards.put(AUDIT_FILE, encode_json(audit))
    return audit


def read_audit(cache: Cache) -> Audit | None:
    """Return a cache's audit, None where it has none; DamageError on a damaged or foreign one."""
    path = cache.path / AUDIT_FILE
    try:
        audit = read_json(path, Audit)
    except FileNotFoundError:
        return None
    for name, wanted in (("format", FORMAT), ("fingerprint", cache.fingerprint)):
        if (found := getattr(audit, name)) != wanted:
            raise DamageError(
                f"{path} is of another cache: {name} differs",
                found=found,
                wanted=wanted,
                fix=f"stillroom check-cache {cache.path} RECIPE --audit",
            )
    return audit
