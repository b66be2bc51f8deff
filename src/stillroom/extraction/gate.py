"""The quality gate: a teacher that is fed or loaded wrongly must not be cached.

What it does is looked at, on some pictures: its weights hold no damage, its answers are finite,
alive, and those of the picture alone; where there are labels it reaches a floor, does better than
one class everywhere, and no other usual preprocessing does better than the declared one. Costs, in
rows of one picture through the network: 42 for features (32 pictures, 10 for steadiness); for
logits 202 (32 more through each of five preprocessings, the declared one among them) where every
other preprocessing is clearly worse, at most 96 more for each that is close and for the declared
one, and to name the right one of a refused teacher three more over the same pictures.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.extraction.health import examine, observe, steadiness
from stillroom.extraction.preprocessing import (
    Scores,
    describe,
    other_preprocessings,
    score,
    try_preprocessings,
)
from stillroom.metrics import num_classes
from stillroom.pictures.dataset import Picture, PictureSet
from stillroom.teachers.configs import Teacher
from stillroom.types import IGNORE

MAX_PICTURES = 128
ROUND = 32  # pictures that are asked about before more are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate found for one target: figures, reasons to refuse (none = passed), and what
    could not be judged.
    """

    target: str
    figures: dict[str, float]
    reasons: tuple[str, ...]
    note: str = ""


def gate_pictures(
    pictures: PictureSet, wanted: int = MAX_PICTURES, size: int = ROUND
) -> Iterator[list[Picture]]:
    """Yield up to `wanted` pictures in rounds of `size` or a few more: labelled ones where there
    are any, of validation or else training, each round spread over all.
    """
    splits = sorted({s.split for s in pictures.shards}, key=lambda split: split != "val")
    places: list[tuple[Any, int]] = []
    for split in splits:
        every = [(s, i) for s in pictures.shard_ids(split) for i in _count(pictures, s)]
        labelled = [(s, i) for s, i in every if pictures.open(s).has_mask(i)]
        places = labelled or places or every
        if labelled:
            break
    places = _spread(places, wanted)
    num_rounds = max(1, len(places) // size)
    for number in range(num_rounds):
        yield [pictures.open(shard).read(i) for shard, i in places[number::num_rounds]]


def judge(
    config: Teacher, built: Any, rounds: Iterable[Sequence[Picture]], classes: int, floor: float
) -> tuple[Verdict, ...]:
    """Judge every target of one teacher on rounds of pictures of equal size; the second round and
    later ones are read only where it is close.
    """
    more = iter(rounds)
    samples = next(more)
    outputs, steady = observe(built, samples), steadiness(built, samples)
    verdicts = []
    for name, kind in config.targets.items():
        figures, infinite, dead = examine(outputs[name], kind)
        reasons = [*built.damage, *infinite]
        if not infinite:
            figures |= steady[name][0]
            reasons += steady[name][1]
        note = _unscored(outputs[name].channels, samples, classes) if kind == "logits" else ""
        if kind == "logits" and not note and not infinite:
            scored, misfed, below = _score(name, built, samples, more, floor, bool(reasons))
            figures |= scored
            dead = misfed or dead or below  # the first is the cause of the others
        reasons += dead
        verdicts.append(Verdict(target=name, figures=figures, reasons=tuple(reasons), note=note))
    return tuple(verdicts)


def _unscored(channels: int, samples: Sequence[Picture], classes: int) -> str:
    """Say why labels cannot judge these logits; empty where they can."""
    if num_classes(channels) != classes:
        return (
            f"it tells {num_classes(channels)} classes apart and the pictures have {classes}, so"
            " neither accuracy nor preprocessing was judged"
        )
    masks = [picture.mask for picture in samples if picture.mask is not None]
    if len(masks) == len(samples) and any(bool((mask != IGNORE).any()) for mask in masks):
        return ""
    return "the pictures have no labels, so neither accuracy nor preprocessing was judged"


def _score(
    name: str,
    built: Any,
    samples: Sequence[Picture],
    more: Iterator[Sequence[Picture]],
    floor: float,
    is_faulty: bool,
) -> tuple[dict[str, float], list[str], list[str]]:
    """Return figures, another preprocessing that does better, and what is wrong with the accuracy;
    what is faulty is not asked again.
    """
    declared, best = score(name, built, samples, built.preprocessing), None
    figures, misfed = {}, []
    if not is_faulty:
        declared, results, best = try_preprocessings(name, built, declared, samples, more, floor)
        figures["best_other_miou"] = max(result.miou for result in results.values())
        if best is not None and results[best].miou >= floor:  # else the weights are to blame
            result, preprocessing = (
                results[best],
                other_preprocessings(built.preprocessing, both=True)[best],
            )
            misfed.append(
                f"{best} gives mIoU {result.miou:.3f}, the declared preprocessing"
                f" {result.declared_miou:.3f}, and explains the labels of {result.wins} of"
                f" {result.num_pictures} pictures better: declare {describe(preprocessing)}"
            )
    figures = {"miou": declared.miou, "pictures": len(declared), **figures}
    return figures, misfed, _below(declared, floor)


def _below(declared: Scores, floor: float) -> list[str]:
    found = f"mIoU {declared.miou:.3f} on {len(declared)} pictures is"
    cause = "wrong or random weights, wrong classes, or a teacher too weak"
    shares = declared.counts.sum((0, 2)).double()
    constant = float(shares.max() / shares.sum() / (shares > 0).sum())
    if not declared.miou >= floor:
        return [f"{found} below --gate-floor {floor}, whatever the preprocessing: {cause}"]
    if floor > 0 and declared.miou <= constant:  # 0 asks for no accuracy at all
        return [f"{found} no better than one class everywhere ({constant:.3f}): {cause}"]
    return []


def _count(pictures: PictureSet, shard: Any) -> range:
    return range(len(pictures.open(shard).keys))


def _spread(places: list, wanted: int) -> list:
    """Return at most `wanted` items at even distances."""
    step = max(1, len(places) // wanted)
    return places[::step][:wanted]
