"""Which rank of a run hangs or is gone, said by those that waited for it in vain."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

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
    of; one that hangs is found by the others, `--run.timeout-s` after they began to wait.
    """
    try:
        yield
    except (RuntimeError, FailureError) as error:
        cause = error.__cause__ or error
        if not isinstance(cause, torch.distributed.DistError) and "gloo" not in str(cause):
            raise
        who, timeout_s = (
            "another process of this run has ended or hangs",
            context.recipe.run.timeout_s,
        )
        hanging = _hanging(context.accelerator.process_index, context.accelerator.num_processes)
        if hanging and "timed out" in str(cause).lower():
            ranks = f"rank{'s' * (len(hanging) > 1)} {', '.join(map(str, hanging))}"
            who = f"{ranks} did not answer for {timeout_s} s (--run.timeout-s)"
        raise FailureError(
            f"{who}, at step {progress.num_steps + 1} of {context.steps}",
            found=first_line(cause),
            fix="see what that process said; --run.resume goes on from the last checkpoint",
        ) from error


def _hanging(rank: int, world: int) -> list[int]:
    """Return the ranks that do not say, as this one does, that they wait in vain."""
    store, others = _get_default_store(), set(range(world)) - {rank}
    store.set(f"waits in vain/{rank}", "")
    began = time.monotonic()
    while others and time.monotonic() < began + _PATIENCE_S:
        others = {other for other in others if not store.check([f"waits in vain/{other}"])}
        time.sleep(0.1)
    return sorted(others)
