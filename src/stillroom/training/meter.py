"""Means of the terms between two lines of the log, summed on the device so that no step waits, and
where the time went.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import FailureError
from stillroom.training.context import TrainContext
from stillroom.training.step import labels

_MOST_SKIPPED = 30  # steps in a row; the loss scale has fallen by 2^30 then, from 65,536 at first


class TermMeter:
    """Sums and counts of the terms since the last line of the log, kept on the device.

    With a gradient scaler (fp16) it counts the steps that were skipped, too, and leaves them out.
    """

    def __init__(self, context: TrainContext) -> None:
        self._context = context
        self._scaler = context.accelerator.scaler
        self._names = labels(context.recipe.terms)
        device = context.accelerator.device
        self._row = torch.zeros((), dtype=torch.int64, device=device)  # skipped, up to now
        self._sums = [0.0, 0.0, 0.0]  # rows, and this rank's seconds and waiting, of all steps
        self._all_skipped = 0
        self.clear()

    def clear(self) -> None:
        """Begin anew: what was done since the last step is none of the next steps' time."""
        terms, device = len(self._names), self._context.accelerator.device
        self._totals = torch.zeros(terms, dtype=torch.float64, device=device)  # of this rank
        self._overflows = torch.zeros(terms, dtype=torch.float64, device=device)  # of this rank
        self._counts = torch.zeros(terms, dtype=torch.float64, device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._steps, self._waited = 0, 0.0
        self._began = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count what is done within as waiting for rows."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def add(self, totals: Tensor, counts: Tensor, norm: Tensor) -> None:
        """Add one step: this rank's totals and the global counts, (terms,), and the norm of the
        whole gradient: with a scaler a step whose norm is not finite was skipped.
        """
        if self._scaler is not None:
            skipped = ~norm.isfinite()
            self._skipped += skipped
            self._row = (self._row + 1) * skipped
            self._overflows += ~totals.isfinite()
            totals, counts = (torch.where(skipped, 0.0, value) for value in (totals, counts))
        self._totals += totals
        self._counts += counts
        self._steps += 1

    def figures(self, step: int, weights: Sequence[float]) -> dict[str, Any]:
        """Return means over the steps since the last call, over all ranks; `weights` are the terms'
        in the loss. Raises FailureError where one is not finite, or where fp16 has skipped too many
        steps in a row.
        """
        both = self._context.reduce(torch.stack([self._totals, self._overflows]))
        scaling = self._scaling(step, both[1])
        means, seen = (both[0] / self._counts).tolist(), (self._counts > 0).tolist()
        found: dict[str, Any] = {}
        loss = 0.0 if any(seen) else math.nan
        for weight, name, mean, there in zip(weights, self._names, means, seen, strict=True):
            found[f"term_{name}"] = mean if there else None
            loss += weight * mean if there else 0.0
            if there and not math.isfinite(mean):
                raise FailureError(f"the term {name} is not finite at step {step}", found=mean)
        return {"loss": loss, **found, **self._pace(), **scaling}

    def _pace(self) -> dict[str, float]:
        """Return how fast the steps since the last call were, and begin anew."""
        rows = self._steps * self._context.recipe.batch
        seconds, waited = time.perf_counter() - self._began, self._waited
        self._sums = [a + b for a, b in zip(self._sums, (rows, seconds, waited), strict=True)]
        self.clear()
        return {"rows_per_s": round(rows / seconds, 2), "waiting": round(waited / seconds, 3)}

    def summary(self) -> dict[str, float]:
        """Return the pace of all steps up to the last figures, evaluations apart."""
        rows, seconds, waited = self._sums
        device = self._context.accelerator.device
        memory = {}
        if device.type == "cuda":
            peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
            names = ("peak_device_mb", "peak_reserved_mb")
            memory = {n: round(peak / 2**20, 1) for n, peak in zip(names, peaks, strict=True)}
        if not seconds:
            return memory
        pace = {"rows_per_s": round(rows / seconds, 2), "waiting": round(waited / seconds, 4)}
        return {**pace, "skipped_steps": self._all_skipped, **memory}

    def _scaling(self, step: int, overflows: Tensor) -> dict[str, Any]:
        """Return what the gradient scaler did since the last call, nothing where there is none."""
        if self._scaler is None:
            return {}
        scale, skipped, row = self._scaler.get_scale(), int(self._skipped), int(self._row)
        self._all_skipped += skipped
        if row >= _MOST_SKIPPED:
            names = [n for n, k in zip(self._names, overflows.tolist(), strict=True) if k]
            where = (
                f"the terms {', '.join(names)} are not finite in the forward pass"
                if names
                else "every term is finite, so gradients overflow in the backward pass"
            )
            raise FailureError(
                f"fp16 has skipped the last {row} steps up to step {step}: no gradient was finite",
                found=f"loss scale {scale:g}; {where}",
                fix="--precision bf16 or fp32, or a lower --optimizer.lr",
            )
        return {"scale": scale, "skipped_steps": skipped}
