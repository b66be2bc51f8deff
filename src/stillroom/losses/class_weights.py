"""Weights of classes: given, or counted so that rare classes weigh as much as common ones."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.errors import UserError

# one per class; "balanced": 1 / pixels of the class in the training masks; None: all 1
ClassWeights = Literal["balanced"] | tuple[float, ...] | None


def balanced(counts: Sequence[int]) -> tuple[float, ...]:
    """Return 1 / count of each class, together the number of classes; 0 for a class without a
    pixel.
    """
    inverse = [1 / count if count else 0.0 for count in counts]
    total = sum(inverse)
    if not total:
        raise UserError(
            "no pixel of the training masks has a class, so classes cannot be balanced",
            fix="give their weights as numbers, or none: --terms.N.class-weights None",
        )
    return tuple(len(counts) * value / total for value in inverse)


def check_weights(weights: ClassWeights) -> None:
    """Raise UserError for what are no weights."""
    if not isinstance(weights, tuple):
        return
    if any(not 0 <= weight < math.inf for weight in weights) or (weights and not any(weights)):
        raise UserError("class weights are numbers from 0 on, one of them above 0", found=weights)


def num_weights(weights: ClassWeights) -> int:
    """Return how many classes have a weight of their own; 0 where that is not known yet."""
    return len(weights) if isinstance(weights, tuple) else 0


def vector(values: ClassWeights, device: torch.device) -> Float[Tensor, "k"]:
    """Return numbers as a float64 vector, made once per device."""
    assert isinstance(values, tuple), "balanced weights are counted before a run's first step"
    return _vector(values, device)


@lru_cache(maxsize=64)
def _vector(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept may be used in training, later
        return torch.tensor(values, dtype=torch.float64, device=device)
