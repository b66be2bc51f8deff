"""Runs one of the project's scripts in its own process and keeps what only that process knows.

`measured.py FIGURES SCRIPT WORDS...` runs SCRIPT as `python SCRIPT WORDS...` would and writes
FIGURES (JSON): the loss of every step where it trains, and the peaks of device memory where there
is a GPU: torch's own (allocated, and reserved for it), and of the whole device, which onnxruntime,
the CUDA context and other processes share. The losses stay on the device until the end, so that no
step waits for them.
"""

import math
import runpy
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.jsonfile import write_json

_LOOK_EVERY_S = 0.05


def main() -> None:
    figures, *sys.argv = sys.argv[1:]
    steps: list[tuple[Any, Tensor, Tensor]] = []
    if Path(sys.argv[0]).name == "train_student.py":
        _watch_steps(steps)
    peak = _DevicePeak()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        write_json(Path(figures), peak.end() | {"losses": [_loss(*step) for step in steps]})


def _watch_steps(steps: list[tuple[Any, Tensor, Tensor]]) -> None:
    """Keep terms, totals and counts of every step of a single process."""
    from stillroom.training.meter import TermMeter

    add = TermMeter.add

    def watched(meter: TermMeter, totals: Tensor, counts: Tensor, *more: Any) -> None:
        steps.append((meter._context.recipe.terms, totals, counts))
        add(meter, totals, counts, *more)

    TermMeter.add = watched  # type: ignore[method-assign]


def _loss(terms: Any, totals: Tensor, counts: Tensor) -> float | None:
    """Return the weighted sum of the terms' means, as the log has it; None where not finite."""
    pairs = zip(terms, totals.double().tolist(), counts.tolist(), strict=True)
    loss = sum(term.weight * total / count for term, total, count in pairs if count)
    return loss if math.isfinite(loss) else None


class _DevicePeak:
    """Looks at the device's memory from time to time until `end`, which returns the peaks in MB."""

    def __init__(self) -> None:
        self._end, self._peak_bytes = threading.Event(), 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        if torch.cuda.is_available():
            self._thread.start()

    def _look(self) -> None:
        while not self._end.wait(_LOOK_EVERY_S):
            free, total = torch.cuda.mem_get_info(0)
            self._peak_bytes = max(self._peak_bytes, total - free)

    def end(self) -> dict[str, Any]:
        if not torch.cuda.is_available():
            return {}
        self._end.set()
        self._thread.join()
        return {
            "peak_allocated_mb": round(torch.cuda.max_memory_allocated(0) / 1e6),
            "peak_reserved_mb": round(torch.cuda.max_memory_reserved(0) / 1e6),
            "peak_device_mb": round(self._peak_bytes / 1e6),
        }


if __name__ == "__main__":
    main()
