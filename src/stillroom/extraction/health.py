"""What needs no label: are a teacher's answers finite, alive, and those of the picture alone?"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.pictures.dataset import Picture
from stillroom.pictures.loader import box_tensor, image_tensor
from stillroom.pictures.rows import whole_row
from stillroom.signals import raise_if_stopped
from stillroom.teachers.protocol import BuiltTeacher
from stillroom.types import Kind

CHUNK = 4  # pictures in one pass
UNSTEADY = 0.003  # root mean square of a difference, in the answer's standard deviations
MAX_DEAD = 0.25  # share of the channels of features
_SAME = 1e-6  # relative; less is rounding
_CLAMPED = -13.85  # just above the logarithm of the smallest probability that is told apart

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Health:
    """What one target said of some pictures, small enough to keep; every tensor is (b c)."""

    finite: Tensor  # share
    low: Tensor
    high: Tensor
    mean: Tensor

    @property
    def channels(self) -> int:
        return self.low.shape[1]


def chunks(
    pictures: Sequence[Picture], stop: threading.Event | None = None
) -> Iterator[tuple[Sequence[Picture], Float[Tensor, "b 3 h w"], dict[str, Any]]]:
    """Yield a few pictures at a time, also as a batch, with what else a teacher is told of them
    (`rows`, `boxes`); raises Stopped once `stop` is set.
    """
    for start in range(0, len(pictures), CHUNK):
        if stop is not None:
            raise_if_stopped(stop, "no shard was begun")
        some = pictures[start : start + CHUNK]
        image = torch.stack([image_tensor(picture.image) for picture in some])
        yield some, image, {"rows": tuple(map(whole_row, some)), "boxes": box_tensor(some)}


def observe(
    built: BuiltTeacher, pictures: Sequence[Picture], stop: threading.Event | None = None
) -> dict[str, Health]:
    """Run a teacher over some pictures; returns what it gave per target."""
    batches = chunks(pictures, stop)
    answers = (built(image, **told) for _, image, told in batches)
    outputs = [{name: _digest(a) for name, a in answer.items()} for answer in answers]
    return {
        name: Health(*(torch.cat([getattr(s[name], f) for s in outputs]) for f in Health.__slots__))
        for name in outputs[0]
    }


def examine(
    health: Health, kind: Kind, is_network: bool = True
) -> tuple[Metrics, list[str], list[str]]:
    """Return figures, why the answer is not finite, and why it is dead.

    What is no network may leave classes out: a mask says nothing of those that no picture shows.
    """
    finite = float(health.finite.double().mean())
    if finite < 1:
        bad = int((health.finite < 1).any(0).sum())
        reason = f"{1 - finite:.2%} of the values are not finite (in {bad} of {health.channels}"
        return {"finite": finite}, [f"{reason} channels)"], []
    dead = _dead(health)
    if kind == "logits" and health.channels > 1:  # a class that no picture shows is not dead
        dead &= health.high.amax(0) > _CLAMPED
    share = float(dead.double().mean())
    figures = {"finite": finite, "dead_channels": share}
    if share == 1:
        where = "everywhere on every picture" if _flat(health).all() else "for every picture"
        return figures, [], [f"dead: the output is the same {where}"]
    if is_network and share > (0 if kind == "logits" else MAX_DEAD):
        return figures, [], [f"dead: {share:.0%} of the channels never change"]
    return figures, [], []


def steadiness(
    built: BuiltTeacher, pictures: Sequence[Picture]
) -> dict[str, tuple[Metrics, list[str]]]:
    """Say per target whether the answer for a picture is that of the picture alone.

    The same batch is asked twice, then its first two pictures alone: ten rows in all. BatchNorm in
    training mode and Dropout show by what they do, whatever a flag says.
    """
    _, image, told = next(chunks(pictures))
    image = torch.cat([image, image / 2])[:CHUNK]  # never one picture only
    boxes = None if told["boxes"] is None else torch.cat([told["boxes"]] * 2)[:CHUNK]
    together, again = built(image, boxes=boxes), built(image, boxes=boxes)
    alone = [
        built(image[i : i + 1], boxes=None if boxes is None else boxes[i : i + 1]) for i in (0, 1)
    ]
    found = {}
    for name, outputs in together.items():
        repeat = _distance(again[name], outputs)
        batch = _distance(torch.cat([answer[name] for answer in alone]), outputs[: len(alone)])
        reasons = []
        if repeat > UNSTEADY:
            reasons.append(
                f"it answers the same pictures differently each time (by {repeat:.1%} of the"
                " answer's spread): Dropout or another layer in training mode, or a broken device"
            )
        elif batch > UNSTEADY:
            reasons.append(
                "its answer for a picture depends on the other pictures of the batch (by"
                f" {batch:.1%} of the answer's spread): BatchNorm in training mode"
            )
        found[name] = ({"repeat_error": repeat, "batch_error": batch}, reasons)
    return found


def _digest(answer: Float[Tensor, "b c y x"]) -> Health:
    flat = answer.flatten(2)
    finite = torch.isfinite(flat).double().mean(2)
    return Health(finite.cpu(), flat.amin(2).cpu(), flat.amax(2).cpu(), flat.mean(2).cpu())


def _flat(health: Health) -> Tensor:
    """Which channels are one value wherever one looks, (c)."""
    size = torch.maximum(health.low.abs(), health.high.abs()).amax(0)
    return health.high.amax(0) - health.low.amin(0) <= _SAME * size


def _dead(health: Health) -> Tensor:
    """Which channels are flat, or one map for every picture, (c)."""
    if len(health.low) == 1:
        return _flat(health)
    size = torch.maximum(health.low.abs(), health.high.abs()).amax(0)
    same = torch.ones_like(size, dtype=torch.bool)
    for figure in (health.low, health.high, health.mean):
        same &= figure.amax(0) - figure.amin(0) <= _SAME * size
    return same | _flat(health)


def _distance(one: Tensor, two: Tensor) -> float:
    spread = float(two.double().std())
    return float((one - two).double().square().mean().sqrt()) / spread if spread > 0 else 0.0
