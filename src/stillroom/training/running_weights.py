"""Class weights that follow the batches: the only state of terms, the same on every rank."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import UserError
from stillroom.losses import FollowsClasses, Term
from stillroom.types import Batch


class RunningWeights:
    """Weights by the head that a term reads; empty where no term asks for any."""

    def __init__(self, terms: Sequence[Term], device: torch.device) -> None:
        """Raises UserError where two terms would share the weights of one head."""
        self._terms: dict[str, Any] = {}  # of FollowsClasses
        for term in terms:
            if term.needs.class_weights:
                assert isinstance(term, FollowsClasses), f"{term.label} follows no classes"
                if term.needs.head in self._terms:
                    raise UserError(f"two terms have running weights of {term.needs.head}")
                self._terms[term.needs.head] = term
        self.values = {
            head: torch.tensor(term.first_weights(), dtype=torch.float64, device=device)
            for head, term in self._terms.items()
        }

    def pixels(self, batch: Batch) -> list[Tensor]:
        """Return the pixels of each term's classes in a micro-batch."""
        return [term.pixels(batch) for term in self._terms.values()]

    def follow(self, pixels: Sequence[Tensor]) -> None:
        """Move the weights by the pixels of a step over all ranks."""
        for (head, term), seen in zip(self._terms.items(), pixels, strict=True):
            self.values[head] = term.next_weights(self.values[head], seen)

    def give(self, batch: Batch) -> Batch:
        """Put the weights, as they are now, into a batch."""
        batch.class_weights = self.values
        return batch

    def state(self) -> dict[str, list[float | None]]:
        """Return the weights for a checkpoint; None is one that has not begun."""
        return {
            head: [None if math.isnan(v) else v for v in values.tolist()]
            for head, values in self.values.items()
        }

    def restore(self, state: Mapping[str, Sequence[float | None]]) -> None:
        """Take the weights of a checkpoint; raises UserError where they are of other terms."""
        if {head: len(values) for head, values in state.items()} != {
            head: len(values) for head, values in self.values.items()
        }:
            raise UserError("the checkpoint has running weights of other terms", found=list(state))
        for head, values in state.items():
            known = [math.nan if value is None else value for value in values]
            self.values[head] = self.values[head].new_tensor(known)
