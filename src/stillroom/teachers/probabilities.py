"""Logits of probabilities and of masks, bounded."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillroom.errors import UserError
from stillroom.types import IGNORE

# probabilities are clamped to [EPSILON, 1 - EPSILON]: exact in float32, log-odds +-13.86
EPSILON = 2.0**-20


def logits_of(probabilities: Float[Tensor, "b k h w"], what: str) -> Float[Tensor, "b k h w"]:
    """Return log-odds for one channel, log-probabilities for several.

    Bounded because probabilities are clamped at EPSILON, at 13.86; float16 keeps such a number to
    within 0.004. NaN stays NaN, for the gate to name. Raises UserError, with `what` they are, where
    the values are no probabilities.
    """
    low, high = (float(value) for value in probabilities.aminmax())
    if low < -1e-3 or high > 1 + 1e-3:
        raise UserError(
            f"{what} declared as probabilities holds other values",
            found=f"{low:.4g} to {high:.4g}",
            wanted="0 to 1",
            fix="declare what it is with --teachers.N.kind logits",
        )
    if probabilities.shape[1] > 1:
        return probabilities.clamp(EPSILON, 1).log()
    clamped = probabilities.clamp(EPSILON, 1 - EPSILON)
    return clamped.log() - torch.log1p(-clamped)


def mask_logits(
    mask: Int[Tensor, "y x"], classes: int, confidence: float
) -> Float[Tensor, "k y x"]:
    """Return what a mask of classes says as if it were `confidence` sure of each pixel.

    Log-odds for one channel (classes 0 and 1), log-probabilities for several; 255 = ignore gives
    every class the same.
    """
    void = mask == IGNORE
    if classes == 1:
        sure = math.log(confidence / (1 - confidence))
        return torch.where(void, 0.0, torch.where(mask == 1, sure, -sure))[None]
    rest = math.log((1 - confidence) / (classes - 1))
    logits = torch.full((classes, *mask.shape), rest)
    logits.scatter_(0, mask.masked_fill(void, 0)[None].long(), math.log(confidence))
    return logits.masked_fill_(void, -math.log(classes))
