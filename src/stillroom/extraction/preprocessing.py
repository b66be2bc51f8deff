"""Is the declared preprocessing the one the network was trained with? The usual others are tried.

No floor tells them apart: of one network the data set's mIoU falls by .013 with the wrong channel
order, and the noise of that difference is .010 on 32 pictures. So pictures are compared in pairs,
too: on how many does the other preprocessing explain the labels better? Cross-entropy is taken
after one scale and one bias per class are fitted, so that confidence alone decides nothing.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, isqrt

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from stillroom.extraction.health import chunks
from stillroom.metrics import confusion, miou, num_classes, predict
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from stillroom.pictures.dataset import Picture
from stillroom.pictures.loader import mask_array
from stillroom.teachers.protocol import BuiltTeacher
from stillroom.types import IGNORE

MARGIN = 0.01  # of mIoU, which alone makes another preprocessing the better one
FEW, FEW_MARGIN = 8, 0.1  # below so many pictures it takes that much: all may be better by chance
GAIN = 0.05  # share of the cross-entropy that it must save where the margin is smaller
CHANCE = 1e-3  # the probability that so many pictures are answered better by luck
_GRID = 20  # pixels of an answer in each direction that the cross-entropy is taken from
_STEPS, _RIDGE = 10, 1e-4  # of the fit
_TURN = {"RGB": 1, "BGR": -1}  # means and deviations below are in the order of RGB
_USUAL = {
    "in [0, 1]": ((0.0,) * 3, (1.0,) * 3, 1.0),
    "in 0..255": ((0.0,) * 3, (1.0,) * 3, 255.0),
    "in [-1, 1]": ((0.5,) * 3, (0.5,) * 3, 1.0),
    "with ImageNet mean and std": (IMAGENET_MEAN, IMAGENET_STD, 1.0),
}


@dataclass(frozen=True, slots=True)
class Scores:
    """What a teacher answered on labelled pictures, as far as comparing needs it."""

    counts: Int[Tensor, "n k k"]  # confusion per picture
    logits: Float[Tensor, "n k m"]  # on a grid
    labels: Int[Tensor, "n m"]

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def miou(self) -> float:
        return float(miou(self.counts.sum(0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How another preprocessing did beside the declared one, on the same pictures."""

    miou: float
    declared_miou: float
    wins: int  # pictures whose labels it explains better
    num_pictures: int  # without ties
    gain: float  # share of the cross-entropy that it saves
    loss: float

    @property
    def is_better(self) -> bool:
        """By the margin and on most pictures, or by less and on more than luck explains."""
        luck = at_least(self.wins, self.num_pictures)
        margin = MARGIN if self.num_pictures >= FEW else FEW_MARGIN
        if self.miou > self.declared_miou + margin and 2 * self.wins > self.num_pictures:
            return True
        return self.miou > self.declared_miou and self.gain > GAIN and luck <= CHANCE


def score(
    name: str,
    built: BuiltTeacher,
    pictures: Sequence[Picture],
    preprocessing: Normalise | None = None,
    stop: threading.Event | None = None,
) -> Scores:
    """Run a teacher of logits over labelled pictures; None is its own preprocessing."""
    scores = [
        _scores(built(image, preprocessing=preprocessing, **told)[name], some)
        for some, image, told in chunks(pictures, stop)
    ]
    return Scores(*(torch.cat([getattr(s, f) for s in scores]) for f in Scores.__slots__))


def try_preprocessings(
    name: str,
    built: BuiltTeacher,
    declared: Scores,
    pictures: Sequence[Picture],
    stop: threading.Event | None = None,
) -> tuple[dict[str, Comparison], str | None]:
    """Try the usual ones on the pictures that `declared` was scored on.

    One change at a time; where one is better, both changes too. Returns how each did, and the name
    of the best one if it is better than the declared.
    """
    assert built.preprocessing is not None
    results: dict[str, Comparison] = {}
    better: list[str] = []
    for both in (False, True):
        for label, other in other_preprocessings(built.preprocessing, both=both).items():
            if label not in results:
                scores = score(name, built, pictures, other, stop)
                results[label] = compare(declared, scores)
        better = [label for label, result in results.items() if result.is_better]
        if not better:
            return results, None
    highest = max(results[label].miou for label in better)
    near = [label for label in better if results[label].miou > highest - MARGIN]
    return results, min(near, key=lambda label: results[label].loss)


def other_preprocessings(preprocessing: Normalise, *, both: bool = False) -> dict[str, Normalise]:
    """Return the other channel order and the usual normalisations, each with its name, without the
    declared; `both` adds the usual normalisations in the other order.
    """
    order = preprocessing.channels
    swapped = "BGR" if order == "RGB" else "RGB"
    mean, std = (
        tuple(preprocessing.mean.flatten().tolist()),
        tuple(preprocessing.std.flatten().tolist()),
    )
    declared = _effect(mean[:: _TURN[order]], std[:: _TURN[order]], preprocessing.scale)
    found: dict[str, Normalise] = {}
    usual = False
    for channels in (order, swapped):
        for label, (m, s, scale) in _USUAL.items():
            is_declared = np.allclose(_effect(m, s, scale), declared, atol=1e-4)
            usual |= is_declared
            if (changes := (channels != order) + (not is_declared)) == 1 or (changes == 2 and both):
                turned = (m[:: _TURN[channels]], s[:: _TURN[channels]])
                found[f"{channels} {label}"] = Normalise(*turned, scale=scale, channels=channels)
    if not usual:
        label = f"{swapped} with the declared mean and std"
        found[label] = Normalise(mean[::-1], std[::-1], scale=preprocessing.scale, channels=swapped)
    return found


def describe(preprocessing: Normalise) -> str:
    """Return a preprocessing as a teacher's fields say it."""
    mean, std = (
        ", ".join(f"{v:.4g}" for v in t.flatten().tolist())
        for t in (preprocessing.mean, preprocessing.std)
    )
    order, scale = preprocessing.channels, preprocessing.scale
    return f"channels={order}, scale={scale:g}, mean=({mean}), std=({std})"


def compare(declared: Scores, other: Scores) -> Comparison:
    """Compare two preprocessings on the same pictures."""
    before, after = calibrated(declared), calibrated(other)
    seen = torch.isfinite(before) & torch.isfinite(after) & (before != after)
    return Comparison(
        miou=other.miou,
        declared_miou=declared.miou,
        wins=int((after < before)[seen].sum()),
        num_pictures=int(seen.sum()),
        gain=1 - float(after[seen].sum() / before[seen].sum()) if seen.any() else 0.0,
        loss=float(after.nanmean()),
    )


def calibrated(scores: Scores) -> Float[Tensor, "n"]:
    """Return each picture's mean cross-entropy, one scale and one bias per class fitted over all;
    nan where no pixel of the grid is labelled.
    """
    logits, labels = scores.logits.double().movedim(1, 2), scores.labels
    logits = logits / logits.std().clamp(min=1e-6)
    valid = labels != IGNORE
    if not valid.any():
        return torch.full((len(labels),), torch.nan)
    scale, bias = _fit(logits[valid], labels[valid])
    each = functional.cross_entropy(
        (logits * scale + bias).movedim(2, 1), labels, ignore_index=IGNORE, reduction="none"
    )
    return (each.sum(1) / valid.sum(1)).float()


def _fit(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, "n"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "k"]]:
    """Return the scale (0 or more) and the biases of least cross-entropy, by Newton's method on a
    convex function; a small ridge bounds them where classes are told apart without a mistake.
    """
    truth = functional.one_hot(labels, logits.shape[1]).double()
    found = torch.zeros(1 + logits.shape[1], dtype=torch.float64)
    for _ in range(_STEPS):
        outputs = (logits * found[0] + found[1:]).softmax(1)
        error, mean = outputs - truth, (outputs * logits).sum(1, keepdim=True)
        slope = torch.cat([(error * logits).sum(1).mean()[None], error.mean(0)]) + _RIDGE * found
        bend = torch.zeros(len(found), len(found), dtype=torch.float64)
        bend[0, 0] = (outputs * logits.square()).sum(1).mean() - mean.square().mean()
        bend[0, 1:] = bend[1:, 0] = (outputs * (logits - mean)).mean(0)
        bend[1:, 1:] = outputs.mean(0).diag() - outputs.T @ outputs / len(outputs)
        bend += _RIDGE * torch.eye(len(found), dtype=torch.float64)
        found = found - torch.linalg.solve(bend, slope)
        found[0].clamp_(min=0)
    return found[0], found[1:]


def at_least(wins: int, tosses: int) -> float:
    """Return the probability of so many heads or more of a fair coin."""
    return sum(comb(tosses, n) for n in range(wins, tosses + 1)) / 2**tosses


def _scores(answer: Float[Tensor, "b c h w"], pictures: Sequence[Picture]) -> Scores:
    mask = torch.from_numpy(np.stack([mask_array(picture) for picture in pictures])).long()
    answer = answer.float().cpu().nan_to_num()
    outputs, classes = predict(answer), num_classes(answer.shape[1])
    counts = [confusion(s[None], m[None], classes) for s, m in zip(outputs, mask, strict=True)]
    if answer.shape[1] == 1:
        answer = torch.cat([torch.zeros_like(answer), answer], 1)
    step = max(1, isqrt(mask.shape[1] * mask.shape[2]) // _GRID)
    grid = (..., slice(step // 2, None, step), slice(step // 2, None, step))
    return Scores(torch.stack(counts), answer[grid].flatten(2).clone(), mask[grid].flatten(1))


def _effect(mean: Sequence[float], std: Sequence[float], scale: float) -> list[float]:
    """Black and white as the network sees them: equal for two ways of writing one normalisation."""
    return [(v * scale - m) / s for v in (0.0, 1.0) for m, s in zip(mean, std, strict=True)]
