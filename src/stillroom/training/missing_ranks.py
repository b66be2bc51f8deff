"""Which rank of a run hangs or is gone, said by those that waited for it in vain."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch.distributed.distributed_c10d import _get_default_store

from stillroom.errors import FailureError, first_line
from stillroom.training.context import TrainContext
from stillroom.training.progress import Progress

_PATIENCE_S = 5.0  # for the other ranks that waited in vain: they have begun to within a step


@contextmanager
def name_missing_ranks(context: TrainContext, progress: Progress) -> Iterator[None]:
    """Within, an error of waiting for another rank becomes a FailureError with step and rank.

    A rank that is gone closes its connections, and is named by the launcher that it was a child
    of; one that hangs is found by the others, `--run.timeout-s` after they began to wait. One
    that was only slow and waits since then too is named beside it: every rank is in the same step.
    """
    try:
        yield
    except (RuntimeError, FailureError) as error:
        cause = error.__cause__ or error
        if not isinstance(cause, torch.distributed.DistError) and "gloo" not in str(cause):
            raise
        ranks = _hanging(context) if "timed out" in str(cause).lower() else _say_so(context)
        who = "another process of this run has ended or hangs"
        if ranks:
            names = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
            who = f"{names} did not answer for {context.recipe.run.timeout_s} s (--run.timeout-s)"
        raise FailureError(
            f"{who}, at step {progress.num_steps + 1} of {context.steps}",
            found=first_line(cause),
            fix="see what that process said; --run.resume goes on from the last checkpoint",
        ) from error


def _say_so(context: TrainContext) -> list[int]:
    """Tell the others that this rank is alive; none is known to hang."""
    with suppress(torch.distributed.DistError):  # the launcher of the first machine has ended
        _get_default_store().set(f"waits in vain/{context.accelerator.process_index}", "")
    return []


def _hanging(context: TrainContext) -> list[int]:
    """Return the ranks that do not say, as this one does, that they wait in vain."""
    ranks, began = _say_so(context), time.monotonic()
    while time.monotonic() < began + _PATIENCE_S:
        every = range(context.accelerator.num_processes)
        ranks = [r for r in every if not _get_default_store().check([f"waits in vain/{r}"])]
        time.sleep(0.1)
    return ranks
