"""When the ranks ask one another whether one of them was told to stop."""

import threading
import time

import torch

from stillroom.training.context import TrainContext

_EVERY_S = 5.0  # of the time that a scheduler leaves between its signal and the end
_MOST_STEPS = 50  # between two questions: steps may become slower


class StopRequest:
    """Whether any rank was told to stop, asked at the steps where there is a line of the log or an
    evaluation, and every 5 s between them.
    """

    def __init__(self, context: TrainContext, stop: threading.Event, step: int) -> None:
        self._context, self._stop, self._next = context, stop, step + 1
        self._asked, self._asked_at = step, time.perf_counter()

    def seen(self, step: int, must_ask: bool) -> bool:
        """Return whether the ranks know of one that was told; those of one step all ask or none."""
        if not must_ask and step < self._next:
            return False
        now = time.perf_counter()
        step_s = (now - self._asked_at) / (step - self._asked)
        both = torch.tensor([float(self._stop.is_set()), step_s])
        told, sum_s = self._context.reduce(both.to(self._context.accelerator.device)).tolist()
        # From a sum over the ranks, so that they agree on the step at which they ask again.
        mean_s = max(sum_s / self._context.accelerator.num_processes, 1e-6)
        self._next = step + min(_MOST_STEPS, max(1, int(_EVERY_S / mean_s)))
        self._asked, self._asked_at = step, now
        return told > 0
