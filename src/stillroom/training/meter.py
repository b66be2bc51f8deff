"""Means of the terms between two lines of the log, summed on the device so that no step waits."""

import math
import time
from typing import Any

from torch import Tensor

from stillroom.errors import FailureError
from stillroom.training.context import TrainContext
from stillroom.training.step import labels


class TermMeter:
    """Sums and counts of the terms since the last line of the log, kept on the device."""

    def __init__(self, context: TrainContext) -> None:
        self._context = context
        self._names = labels(context.recipe.terms)
        self._began = time.perf_counter()
        self._steps = 0
        self._totals: Tensor | float = 0.0
        self._counts: Tensor | float = 0.0

    def add(self, totals: Tensor, counts: Tensor) -> None:
        """Add one step: this rank's totals and the global counts, (terms,)."""
        self._totals = self._totals + totals.double()
        self._counts = self._counts + counts
        self._steps += 1

    def figures(self, step: int) -> dict[str, Any]:
        """Return means over the steps since the last call, over all ranks; raises FailureError
        where one is not finite.
        """
        assert isinstance(self._totals, Tensor) and isinstance(self._counts, Tensor)
        means = (self._context.reduce(self._totals) / self._counts).tolist()
        seen = (self._counts > 0).tolist()
        found: dict[str, Any] = {}
        loss = 0.0
        terms = self._context.recipe.terms
        for term, name, mean, there in zip(terms, self._names, means, seen, strict=True):
            found[f"term_{name}"] = mean if there else None
            loss += term.weight * mean if there else 0.0
            if there and not math.isfinite(mean):
                raise FailureError(f"the term {name} is not finite at step {step}", found=mean)
        seconds = time.perf_counter() - self._began
        rows = self._steps * self._context.recipe.batch
        self._totals, self._counts, self._steps = 0.0, 0.0, 0
        self._began = time.perf_counter()
        return {"loss": loss, **found, "rows_per_s": round(rows / seconds, 2)}


def step_line(context: TrainContext, step: int, figures: dict[str, Any]) -> str:
    """Return one line of the log for people."""
    terms = ", ".join(
        f"{name.removeprefix('term_')} {value:.4f}"
        for name, value in figures.items()
        if name.startswith("term_") and value is not None
    )
    return (
        f"step {step}/{context.steps}: loss {figures['loss']:.4f} ({terms}),"
        f" {figures['rows_per_s']:.1f} rows/s"
    )
