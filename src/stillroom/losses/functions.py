"""What is computed of labels: sums over valid pixels, always in fp32, autocast or not.

Every function takes what may be left out (`valid`) and returns a sum without dividing it; nothing
that is not valid moves the sum or gets a gradient, not even where it is infinite.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from stillroom.losses.cells import autocast_off, kept
from stillroom.losses.cells import inside_at as inside_at
from stillroom.losses.cells import labelled as labelled
from stillroom.losses.class_weights import vector
from stillroom.types import IGNORE

Sum = Float[Tensor, ""]


def cross_entropy(
    logits: Float[Tensor, "b k h w"],
    mask: Int[Tensor, "b h w"],
    valid: Bool[Tensor, "b h w"],
    class_weights: Float[Tensor, "k"] | None = None,
) -> Sum:
    """Sum of -w[y] log softmax(logits)[y] over valid pixels."""
    with autocast_off(logits):
        return functional.cross_entropy(
            kept(logits, valid),
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
    with autocast_off(logits):
        values = kept(logits, valid)
        first = 1 if values.shape[1] == 1 else 0
        classes = torch.arange(first, first + values.shape[1], device=mask.device)
        positive = -pos_weight * functional.logsigmoid(values)
        hit = mask[:, None] == classes[:, None, None]
        pixels = torch.where(hit, positive, -functional.logsigmoid(-values)).mean(1)
        return pixels.masked_fill(~valid, 0.0).sum()


def focal(
    logits: Float[Tensor, "b k h w"],
    mask: Int[Tensor, "b h w"],
    valid: Bool[Tensor, "b h w"],
    alpha: float,
    gamma: float,
) -> Sum:
    """Sum over valid pixels of -a (1 - p)^gamma log p, p being the true class's probability.

    Several channels: a is alpha. One: a is alpha where the mask is 1, else 1 - alpha. Source: Lin
    et al. 2017, section 3.2.
    """
    with autocast_off(logits):
        values = kept(logits, valid)
        if values.shape[1] == 1:
            positive = mask == 1
            log_p = functional.logsigmoid(torch.where(positive, values[:, 0], -values[:, 0]))
            factor = torch.where(positive, alpha, 1 - alpha)
        else:
            truth = mask.masked_fill(~valid, 0).unsqueeze(1)
            log_p, factor = values.log_softmax(1).gather(1, truth)[:, 0], alpha
        # no power of 0: its slope would be infinite where gamma is below 1
        missing = (-torch.expm1(log_p)).clamp_min(1e-12)
        return (-factor * missing**gamma * log_p).masked_fill(~valid, 0.0).sum()


def dice(
    logits: Float[Tensor, "b k h w"],
    mask: Int[Tensor, "b h w"],
    valid: Bool[Tensor, "b h w"],
    smooth: float,
    only: tuple[int, ...] = (),
) -> Sum:
    """Sum over pictures of 1 - (2 sum(p y) + s) / (sum(p) + sum(y) + s).

    One channel: of the foreground (mask 1). Several: the mean over the classes that are in the
    picture's mask, or over those of `only`. A picture without a valid pixel adds 0.
    """
    with autocast_off(logits):
        values, k = kept(logits, valid), logits.shape[1]
        if k == 1:
            share, truth = values.sigmoid(), (mask == 1).unsqueeze(1)
        else:
            share = values.softmax(1)
            truth = mask.unsqueeze(1) == torch.arange(k, device=mask.device).view(1, k, 1, 1)
        share = share.masked_fill(~valid.unsqueeze(1), 0.0)
        truth = truth & valid.unsqueeze(1)
        sizes = truth.sum((2, 3)).float()
        overlap = 2 * share.masked_fill(~truth, 0.0).sum((2, 3)) + smooth
        loss = 1 - overlap / (share.sum((2, 3)) + sizes + smooth)
        known = valid.flatten(1).any(1, keepdim=True)
        present = (known if k == 1 or only else sizes > 0).float().expand_as(sizes)
        if only:
            chosen = vector(tuple(map(float, only)), loss.device).long()  # a list would wait
            loss, present = loss[:, chosen], present[:, chosen]
        return ((loss * present).sum(1) / present.sum(1).clamp(min=1)).sum()


def agreement(
    head: Float[Tensor, "b k h w"],
    logits: Float[Tensor, "b c h w"],
    groups: Int[Tensor, "c"],
    valid: Bool[Tensor, "b h w"],
) -> Sum:
    """Sum over valid pixels of the mean over k of (softmax(head) - s)^2, where s[k] adds up
    softmax(logits) of the classes c with groups[c] = k.
    """
    with autocast_off(head):
        share, own = kept(head, valid).softmax(1), kept(logits, valid).softmax(1)
        together = torch.zeros_like(share).index_add(1, groups, own)
        return (share - together).square().mean(1).masked_fill(~valid, 0.0).sum()
