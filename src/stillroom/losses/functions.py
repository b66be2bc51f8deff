"""What the losses compute: sums over valid pixels or cells, always in fp32, autocast or not.

Every function takes what may be left out (`valid`) and returns a sum without dividing it; nothing
that is not valid moves the sum or gets a gradient, not even where it is infinite.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from stillroom.types import IGNORE

Sum = Float[Tensor, ""]


def labelled(mask: Int[Tensor, "b h w"], inside: Bool[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """Return where a label is known: neither void nor padding."""
    return inside & (mask != IGNORE)


def inside_at(inside: Bool[Tensor, "b h w"], y: int, x: int) -> Bool[Tensor, "b {y} {x}"]:
    """Return which cells of a y x x grid are valid: those whose centre pixel is no padding."""
    h, w = inside.shape[1:]
    assert h % y == 0 and w % x == 0, f"a grid of {y} x {x} does not divide {h} x {w} pixels"
    rows, columns = h // y, w // x
    return inside[:, rows // 2 :: rows, columns // 2 :: columns]


def cross_entropy(
    logits: Float[Tensor, "b k h w"],
    mask: Int[Tensor, "b h w"],
    valid: Bool[Tensor, "b h w"],
    class_weights: Float[Tensor, "k"] | None = None,
) -> Sum:
    """Sum of -w[y] log softmax(logits)[y] over valid pixels."""
    with _autocast_off(logits):
        return functional.cross_entropy(
            _kept(logits, valid),
            mask.masked_fill(~valid, IGNORE),
            weight=class_weights,
            ignore_index=IGNORE,
            reduction="sum",
        )


def binary_cross_entropy(
    logits: Float[Tensor, "b k h w"],
    mask: Int[Tensor, "b h w"],
    valid: Bool[Tensor, "b h w"],
    pos_weight: float = 1.0,
) -> Sum:
    """Sum over valid pixels of the mean over channels of -w y log p - (1 - y) log(1 - p).

    One channel: y is 1 where the mask is 1. Several: one class against the rest, y is 1 in the
    mask's channel.
    """
    with _autocast_off(logits):
        kept = _kept(logits, valid)
        first = 1 if kept.shape[1] == 1 else 0
        classes = torch.arange(first, first + kept.shape[1], device=mask.device)
        positive = -pos_weight * functional.logsigmoid(kept)
        hit = mask[:, None] == classes[:, None, None]
        pixels = torch.where(hit, positive, -functional.logsigmoid(-kept)).mean(1)
        return pixels.masked_fill(~valid, 0.0).sum()


def dice(
    logits: Float[Tensor, "b k h w"],
    mask: Int[Tensor, "b h w"],
    valid: Bool[Tensor, "b h w"],
    smooth: float,
) -> Sum:
    """Sum over pictures of 1 - (2 sum(p y) + s) / (sum(p) + sum(y) + s).

    One channel: of the foreground (mask 1). Several: the mean over the classes that are in the
    picture's mask. A picture without a valid pixel adds 0.
    """
    with _autocast_off(logits):
        kept, k = _kept(logits, valid), logits.shape[1]
        if k == 1:
            share, truth = kept.sigmoid(), (mask == 1).unsqueeze(1)
        else:
            share = kept.softmax(1)
            truth = mask.unsqueeze(1) == torch.arange(k, device=mask.device).view(1, k, 1, 1)
        share = share.masked_fill(~valid.unsqueeze(1), 0.0)
        truth = truth & valid.unsqueeze(1)
        sizes = truth.sum((2, 3)).float()
        overlap = 2 * share.masked_fill(~truth, 0.0).sum((2, 3)) + smooth
        loss = 1 - overlap / (share.sum((2, 3)) + sizes + smooth)
        present = (valid.flatten(1).any(1, keepdim=True) if k == 1 else sizes > 0).float()
        return ((loss * present).sum(1) / present.sum(1).clamp(min=1)).sum()


def soft_kl(
    logits: Float[Tensor, "b k h w"],
    target: Float[Tensor, "b k h w"],
    valid: Bool[Tensor, "b h w"],
    temperature: float,
) -> Sum:
    """Sum over valid pixels of T^2 KL(teacher / T || student / T); Bernoulli for one channel.

    Source: Hinton, Vinyals, Dean 2015, section 2 (the factor T^2 keeps the gradient's size).
    """
    with _autocast_off(logits):
        student = _kept(logits, valid) / temperature
        teacher = _kept(target, valid) / temperature
        if logits.shape[1] == 1:
            student = torch.cat([student, -student], 1)
            teacher = torch.cat([teacher, -teacher], 1)
            log_q, log_p = functional.logsigmoid(student), functional.logsigmoid(teacher)
        else:
            log_q, log_p = student.log_softmax(1), teacher.log_softmax(1)
        return (log_p.exp() * (log_p - log_q)).sum() * temperature**2


def squared_error(
    output: Float[Tensor, "b c y x"], target: Float[Tensor, "b c y x"], valid: Bool[Tensor, "b y x"]
) -> Sum:
    """Sum over valid cells of the mean over channels of (output - target)^2."""
    with _autocast_off(output):
        difference = _kept(output.float() - target.float(), valid)
        return difference.square().mean(1).sum()


def cosine_distance(
    output: Float[Tensor, "b c y x"], target: Float[Tensor, "b c y x"], valid: Bool[Tensor, "b y x"]
) -> Sum:
    """Sum over valid cells of 1 - cos(output, target), of the vectors of channels."""
    with _autocast_off(output):
        cosine = functional.cosine_similarity(_kept(output, valid), _kept(target, valid), dim=1)
        return (1 - cosine).masked_fill(~valid, 0.0).sum()


def _kept(
    values: Float[Tensor, "b c y x"], valid: Bool[Tensor, "b y x"]
) -> Float[Tensor, "b c y x"]:
    """Return the values in fp32, zero where not valid; nothing flows back from there."""
    return values.float().masked_fill(~valid.unsqueeze(1), 0.0)


def _autocast_off(values: Tensor) -> torch.autocast:
    return torch.autocast(values.device.type, enabled=False)
