"""What the configs of teachers share: checks of fields, kinds and tensors of their targets."""

import math
import re
from collections.abc import Iterable
from typing import Any

from stillroom.errors import UserError
from stillroom.networks.description import Triple
from stillroom.types import Kind

# (target, tap), or (target, tap, stride): averaged to so many pixels of the picture a cell
Taps = tuple[tuple[str, str] | tuple[str, str, int], ...]

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


def check_taps(target: str | None, taps: Iterable[tuple[Any, ...]]) -> None:
    """Raise UserError for targets without a name, or two of one name, and for no stride."""
    taps = tuple(taps)
    names = [*([] if target is None else [target]), *(tap[0] for tap in taps)]
    if not names:
        raise UserError("a teacher that makes no target", fix="name one")
    for name in names:
        check_target(name)
    if len(set(names)) < len(names):
        raise UserError("two targets of one teacher have one name", found=", ".join(names))
    for name, stride in strides(taps).items():
        if stride < 1:
            raise UserError(
                f"no such stride of the target {name!r}", found=stride, wanted="1 or more"
            )


def strides(taps: Iterable[tuple[Any, ...]]) -> dict[str, int]:
    """Return to what targets are averaged, px per cell of those that are."""
    return {tap[0]: tap[2] for tap in taps if len(tap) == 3}


def places(taps: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    """Return where in the network each target is found."""
    return {tap[0]: tap[1] for tap in taps}


def kinds(target: str | None, taps: Iterable[tuple[Any, ...]]) -> dict[str, Kind]:
    """Return the kind of each target: logits under `target`, features under the others."""
    main: dict[str, Kind] = {} if target is None else {target: "logits"}
    return {**main, **{tap[0]: "features" for tap in taps}}


def tensors(taps: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    """Return what each target is, as an identity records it: where it is found, and its stride
    where it is averaged.
    """
    found = places(taps)
    return found | {n: {"tensor": found[n], "stride": s} for n, s in strides(taps).items()}
