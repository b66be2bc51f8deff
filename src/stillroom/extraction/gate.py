"""The quality gate: a teacher that is fed or loaded wrongly must not be cached.

What it does is looked at, on some pictures: its weights hold no damage, its answers are finite,
alive, and those of the picture alone; where there are labels it reaches a floor, does better than
one class everywhere, and no other usual preprocessing does better than the declared one. Costs, in
rows of one picture through the network: 42 for features (32 pictures, 10 for steadiness); for
logits 128 more through each of five preprocessings, the declared one among them, and of a refused
teacher 384 more to name the right one.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.extraction.health import examine, observe, steadiness
from stillroom.extraction.preprocessing import (
    Scores,
    describe,
    other_preprocessings,
    score,
    try_preprocessings,
)
from stillroom.metrics import num_classes
from stillroom.networks.normalise import Normalise
from stillroom.pictures.dataset import Picture, PictureSet
from stillroom.pictures.rows import places_of, read_place
from stillroom.teachers.protocol import BuiltTeacher, TeacherConfig
from stillroom.types import IGNORE, Row, ShardId

MAX_PICTURES = 128  # that preprocessings are compared on
_OF_A_RUN = "the colours of these pictures are not those that it was trained on, or it is too weak"
_NUM_OBSERVED = 32  # of these, for what needs no label


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate found for one target: figures, reasons to refuse (none = passed), and what
    could not be judged.
    """

    target: str
    figures: dict[str, float]
    reasons: tuple[str, ...]
    note: str = ""


class InParts:
    """A teacher that is given at most `rows` rows at once, as the device may hold no more."""

    def __init__(self, built: BuiltTeacher, rows: int) -> None:
        self._built, self._rows = built, rows
        self.preprocessing, self.damage = built.preprocessing, built.damage
        self.provider, self.identity = built.provider, built.identity

    def __call__(
        self,
        image: Float[Tensor, "b 3 h w"],
        *,
        rows: Sequence[Row] = (),
        preprocessing: Normalise | None = None,
        boxes: Float[Tensor, "b 4"] | None = None,
    ) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """Return what the teacher answers, part by part."""
        parts = []
        for start in range(0, len(image), self._rows):
            some = slice(start, start + self._rows)
            box = None if boxes is None else boxes[some]
            parts.append(
                self._built(image[some], rows=rows[some], preprocessing=preprocessing, boxes=box)
            )
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def gate_pictures(
    pictures: PictureSet,
    wanted: int = MAX_PICTURES,
    size: tuple[int, int] | None = None,
    regions: tuple[int, int] | None = None,
) -> list[Picture]:
    """Return up to `wanted` pictures at even distances, of `size` (h, w) where that is given, or
    with `regions` (y, x) as many regions: labelled ones where there are any, of validation or else
    training.
    """
    splits = sorted({s.split for s in pictures.shards}, key=lambda split: split != "val")
    places: list[tuple[ShardId, Row]] = []
    for split in splits:
        every = list(places_of(pictures, split, regions=regions is not None))
        labelled = [place for place in every if _has_mask(pictures, *place)]
        places = labelled or places or every
        if labelled:
            break
    return [read_place(pictures, place, size, regions) for place in _spread(places, wanted)]


def _has_mask(pictures: PictureSet, shard: ShardId, row: Row) -> bool:
    opened = pictures.open(shard)
    return opened.has_mask(opened.index(row.key))


def judge(
    config: TeacherConfig,
    built: BuiltTeacher,
    pictures: Sequence[Picture],
    classes: int,
    floor: float,
    stop: threading.Event | None = None,
) -> tuple[Verdict, ...]:
    """Judge every target of one teacher on pictures of equal size; Stopped once `stop` is set."""
    samples = _spread(pictures, _NUM_OBSERVED)
    outputs, is_network = observe(built, samples, stop), built.preprocessing is not None
    steady = steadiness(built, samples) if is_network else {}
    verdicts = []
    for name, kind in config.targets.items():
        figures, infinite, dead = examine(outputs[name], kind, is_network)
        reasons = [*built.damage, *infinite]
        if not infinite and is_network:
            figures |= steady[name][0]
            reasons += steady[name][1]
        note = _unscored(outputs[name].channels, pictures, classes) if kind == "logits" else ""
        if kind == "logits" and not note and not infinite:
            declares = hasattr(config, "channels")  # a run knows for itself what it was fed
            scored, misfed, below = _score(
                name, built, pictures, floor, bool(reasons), declares, stop
            )
            figures |= scored
            dead = misfed or dead or below  # the first is the cause of the others
        reasons += dead
        verdicts.append(Verdict(target=name, figures=figures, reasons=tuple(reasons), note=note))
    return tuple(verdicts)


def _unscored(channels: int, pictures: Sequence[Picture], classes: int) -> str:
    """Say why labels cannot judge these logits; empty where they can."""
    if num_classes(channels) != classes:
        return (
            f"it tells {num_classes(channels)} classes apart and the pictures have {classes}, so"
            " neither accuracy nor preprocessing was judged"
        )
    masks = [picture.mask for picture in pictures if picture.mask is not None]
    if len(masks) == len(pictures) and any(bool((mask != IGNORE).any()) for mask in masks):
        return ""
    return "the pictures have no labels, so neither accuracy nor preprocessing was judged"


def _score(
    name: str,
    built: BuiltTeacher,
    pictures: Sequence[Picture],
    floor: float,
    is_faulty: bool,
    declares: bool,
    stop: threading.Event | None,
) -> tuple[dict[str, float], list[str], list[str]]:
    """Return figures, another preprocessing that does better, and what is wrong with the accuracy;
    what is faulty is not asked again, and what is no function of pixels has no preprocessing.
    """
    declared = score(name, built, pictures, stop=stop)
    figures, misfed = {"miou": declared.miou, "pictures": len(declared)}, []
    tried = "no other preprocessing was tried"
    if not is_faulty and built.preprocessing is not None:
        results, best = try_preprocessings(name, built, declared, pictures, stop)
        figures["best_other_miou"] = max(result.miou for result in results.values())
        others = (f"{label} {result.miou:.3f}" for label, result in results.items())
        tried = (
            f"tried were the declared preprocessing ({describe(built.preprocessing)}"
            f" {declared.miou:.3f}), {', '.join(others)}"
        )
        if best is not None and results[best].miou >= floor:  # else the weights are to blame
            right = other_preprocessings(built.preprocessing, both=True)[best]
            misfed.append(
                f"{best} gives mIoU {results[best].miou:.3f}, the declared preprocessing"
                f" {declared.miou:.3f}, and explains the labels of {results[best].wins} of"
                f" {results[best].num_pictures} pictures better: "
                + (f"declare {describe(right)}" if declares else _OF_A_RUN)
            )
    return figures, misfed, _below(declared, floor, tried)


def _below(declared: Scores, floor: float, tried: str) -> list[str]:
    found = f"mIoU {declared.miou:.3f} on {len(declared)} pictures is"
    cause = (
        f"{tried}; what is left are a mean and deviation of its own (--teachers.N.mean, .std,"
        " .scale, .channels, as its authors say), other classes or another order of them, wrong or"
        " random weights, a teacher too weak (of an ONNX file, stillroom inspect FILE"
        " --data SHARDS tries more)"
    )
    shares = declared.counts.sum((0, 2)).double()
    constant = float(shares.max() / shares.sum() / (shares > 0).sum())
    if not declared.miou >= floor:
        return [f"{found} below --gate-floor {floor}: {cause}"]
    if floor > 0 and declared.miou <= constant:  # 0 asks for no accuracy at all
        return [f"{found} no better than one class everywhere ({constant:.3f}): {cause}"]
    return []


def _spread(places: Sequence[Any], wanted: int) -> list[Any]:
    """Return at most `wanted` items at even distances."""
    count = min(wanted, len(places))
    return [places[i * len(places) // count] for i in range(count)]
