"""What the configs of teachers share: checks of fields, kinds and tensors of their targets."""

import math
import re
from collections.abc import Iterable
from typing import Any

from stillroom.errors import UserError
from stillroom.networks.description import Triple
from stillroom.types import Kind

Taps = tuple[tuple[str, str], ...]  # (target, tap) pairs

_TARGET = re.compile(r"[a-z][a-z0-9_]*")


def check_target(name: str) -> None:
    """Raise UserError for a name that no target can have."""
    if not _TARGET.fullmatch(name):
        raise UserError("no such target name", found=repr(name), wanted="[a-z][a-z0-9_]*")


def check_normalisation(mean: Triple, std: Triple, scale: float = 1.0) -> None:
    """Raise UserError for numbers that normalise nothing."""
    if not (math.isfinite(scale) and scale > 0):
        raise UserError("a teacher's scale must be positive", found=scale, wanted="> 0")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise UserError("mean and std must be finite, std positive", found=f"{mean}, {std}")


def preprocessing(
    channels: str, scale: float, mean: Triple, std: Triple, **more: Any
) -> dict[str, Any]:
    """Return how pictures become what a network takes, as an identity records it."""
    numbers = {"scale": scale, "mean": list(mean), "std": list(std)}
    return {"channels": channels, **numbers, **more}


def check_taps(target: str | None, taps: Iterable[tuple[str, Any]]) -> None:
    """Raise UserError for targets without a name, or two of one name."""
    names = [*([] if target is None else [target]), *(name for name, _ in taps)]
    if not names:
        raise UserError("a teacher that makes no target", fix="name one")
    for name in names:
        check_target(name)
    if len(set(names)) < len(names):
        raise UserError("two targets of one teacher have one name", found=", ".join(names))


def kinds(target: str | None, taps: Iterable[tuple[str, Any]]) -> dict[str, Kind]:
    """Return the kind of each target: logits under `target`, features under the others."""
    main: dict[str, Kind] = {} if target is None else {target: "logits"}
    return {**main, **{name: "features" for name, _ in taps}}


def tensors(target: str, taps: Taps) -> dict[str, str]:
    """Return what each target is in the network."""
    return {target: "logits", **dict(taps)}
