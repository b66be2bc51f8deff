"""The quality gate: a teacher that is fed or loaded wrongly must not be cached.

On some labelled pictures each teacher must reach a floor, say nothing that is not finite, have no
dead output, and its declared
preprocessing must not be beaten by another usual one: no floor can tell a wrong normalisation from
a poor network.
Costs seven passes over at most 32 pictures for a teacher of logits, one for features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.metrics import confusion, miou, predict
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from stillroom.pictures.dataset import Picture, PictureSet
from stillroom.pictures.loader import image_tensor, mask_array
from stillroom.teachers.configs import Teacher
from stillroom.types import IGNORE

MAX_PICTURES = 32
MARGIN = 0.01  # of mIoU: measured differences between normalisations start at 0.02
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate found for one target: figures, and reasons to refuse (none = passed)."""

    target: str
    figures: dict[str, float]
    reasons: tuple[str, ...]


def gate_pictures(pictures: PictureSet, wanted: int = MAX_PICTURES) -> list[Picture]:
    """Return up to `wanted` pictures, labelled ones where there are any, spread over validation or
    else training.
    """
    splits = sorted({s.split for s in pictures.shards}, key=lambda split: split != "val")
    unlabelled: list[Picture] = []
    for split in splits:
        places = [
            (shard, i) for shard in pictures.shard_ids(split) for i in _count(pictures, shard)
        ]
        labelled = [(s, i) for s, i in places if pictures.open(s).has_mask(i)]
        if labelled:
            return [pictures.open(s).read(i) for s, i in _spread(labelled, wanted)]
        unlabelled = unlabelled or [pictures.open(s).read(i) for s, i in _spread(places, wanted)]
    return unlabelled


def judge(
    config: Teacher, built: Any, samples: Sequence[Picture], classes: int, floor: float, device: str
) -> tuple[Verdict, ...]:
    """Judge every target of one teacher on some pictures of equal size."""
    image = torch.stack([image_tensor(picture.image) for picture in samples]).to(device)
    said = _listen(built, image)
    verdicts = []
    for name, kind in config.targets.items():
        figures, reasons = _health(said[name])
        scorable = kind == "logits" and said[name].classes == classes
        if not reasons and scorable and _is_labelled(samples):
            scored = _score(name, built, image, samples, floor)
            figures, reasons = figures | scored[0], scored[1]
        verdicts.append(Verdict(target=name, figures=figures, reasons=tuple(reasons)))
    return tuple(verdicts)


def _is_labelled(samples: Sequence[Picture]) -> bool:
    """Return whether every picture has a mask, and some mask a pixel that counts."""
    masks = [picture.mask for picture in samples if picture.mask is not None]
    return len(masks) == len(samples) and any(bool((mask != IGNORE).any()) for mask in masks)


def _score(
    name: str, built: Any, image: Tensor, samples: Sequence[Picture], floor: float
) -> tuple[dict[str, float], list[str]]:
    mask = torch.from_numpy(np.stack([mask_array(picture) for picture in samples])).long()
    declared = _miou(_listen(built, image)[name], mask)
    figures, reasons = {"miou": declared}, []
    if not declared >= floor:
        reasons.append(
            f"mIoU {declared:.3f} on {len(samples)} pictures is below --gate-floor {floor}:"
            " wrong weights, wrong classes, or a teacher too weak"
        )
    door = built.door
    best = ("", -1.0)
    for label, other in _other_doors(door).items():
        built.door = other.to(image.device)
        try:
            found = _miou(_listen(built, image)[name], mask)
        finally:
            built.door = door
        best = max(best, (label, found), key=lambda pair: pair[1])
    figures["best_other_miou"] = best[1]
    if best[1] > declared + MARGIN:
        reasons.append(
            f"{best[0]} gives mIoU {best[1]:.3f}, the declared preprocessing {declared:.3f}:"
            " declare the preprocessing that the network was trained with"
        )
    return figures, reasons


@dataclass(frozen=True, slots=True)
class _Said:
    """What one target said of all pictures, small enough to keep."""

    finite: float
    low: Tensor  # (b c)
    high: Tensor  # (b c)
    prediction: Tensor  # (b y x)

    @property
    def classes(self) -> int:
        return max(2, self.low.shape[1])


def _listen(built: Any, image: Float[Tensor, "b 3 h w"], step: int = 4) -> dict[str, _Said]:
    chunks = [
        {name: _digest(answer) for name, answer in built(chunk).items()}
        for chunk in image.split(step)
    ]
    return {
        name: _Said(
            sum(chunk[name].finite for chunk in chunks) / len(chunks),
            *(
                torch.cat([getattr(chunk[name], field) for chunk in chunks])
                for field in ("low", "high", "prediction")
            ),
        )
        for name in chunks[0]
    }


def _digest(answer: Float[Tensor, "b c y x"]) -> _Said:
    finite = float(torch.isfinite(answer).double().mean())
    low, high = answer.amin((2, 3)).cpu(), answer.amax((2, 3)).cpu()
    return _Said(finite, low, high, predict(answer).cpu())


def _health(said: _Said) -> tuple[dict[str, float], list[str]]:
    if said.finite < 1:
        reason = f"{1 - said.finite:.2%} of the values are not finite"
        return {"finite": said.finite}, [reason]
    dead = float((said.high.amax(0) == said.low.amin(0)).double().mean())
    reasons = []
    if dead == 1:
        reasons.append("the output is the same everywhere on every picture")
    elif dead > 0.5:
        reasons.append(f"{dead:.0%} of the channels never change")
    elif len(said.low) > 1 and bool(
        (said.low == said.low[0]).all() & (said.high == said.high[0]).all()
    ):
        reasons.append("the output is the same for every picture")
    return {"finite": said.finite, "dead_channels": dead}, reasons


def _other_doors(door: Normalise) -> dict[str, Normalise]:
    """The other channel order and the usual normalisations, each with its name; the declared one
    is left out.
    """
    order = door.channels
    other = "BGR" if order == "RGB" else "RGB"
    mean, std = tuple(door.mean.flatten().tolist()), tuple(door.std.flatten().tolist())
    scale = door.scale
    flip = _IMAGENET if order == "RGB" else (_IMAGENET[0][::-1], _IMAGENET[1][::-1])
    doors = {
        f"channels={other}": (mean, std, scale, other),
        f"{order} in [0, 1]": ((0.0,) * 3, (1.0,) * 3, 1.0, order),
        f"{order} in 0..255": ((0.0,) * 3, (1.0,) * 3, 255.0, order),
        f"{order} in [-1, 1]": ((0.5,) * 3, (0.5,) * 3, 1.0, order),
        f"{order} with ImageNet mean and std": (*flip, 1.0, order),
    }
    declared = _effect(mean, std, scale)
    return {
        label: Normalise(m, s, scale=k, channels=c)
        for label, (m, s, k, c) in doors.items()
        if c != order or not np.allclose(_effect(m, s, k), declared, atol=1e-4)
    }


def _effect(mean: Sequence[float], std: Sequence[float], scale: float) -> list[float]:
    """Black and white as the network sees them: equal for two ways of writing one normalisation."""
    return [(v * scale - m) / s for v in (0.0, 1.0) for m, s in zip(mean, std, strict=True)]


def _miou(said: _Said, mask: Tensor) -> float:
    return float(miou(confusion(said.prediction, mask, said.classes)))


def _count(pictures: PictureSet, shard: Any) -> range:
    return range(len(pictures.open(shard).keys))


def _spread(places: list, wanted: int) -> list:
    """Return at most `wanted` items at even distances."""
    step = max(1, len(places) // wanted)
    return places[::step][:wanted]
