"""What to say when a micro-batch does not fit into the device's memory: which one does."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch

from stillroom.device_memory import largest_that_fits, smaller_micro_batches
from stillroom.errors import UserError
from stillroom.training.batches import decoded_batches, with_labels_on
from stillroom.training.context import TrainContext
from stillroom.training.order import make_schedule
from stillroom.training.step import term_totals
from stillroom.types import Batch


def out_of_memory(context: TrainContext, found: str) -> UserError:
    """Return the error of a run whose memory ran out, after trying which micro-batch fits.

    Call it when nothing holds the failed step's tensors any more; the run cannot go on after it.
    """
    recipe = context.recipe
    sizes = smaller_micro_batches(recipe.batch, recipe.micro_batch, context.schedule.world)
    fits = largest_that_fits(sizes, lambda size: _try_step(context, size))
    fix = f"--micro-batch {fits} (tried just now: it fits) with --run.overwrite"
    if any((context.folder / "checkpoints").glob("step-*")):
        fix = (
            "end what else uses the device, then the same command with --run.resume; or begin anew"
            f" (what was trained is lost) with {fix}"
        )
    if fits is None:
        fix = (
            f"no smaller micro-batch of --batch {recipe.batch} fits either: a smaller student,"
            " smaller pictures, --precision bf16, or a device with more memory"
        )
    return UserError(
        "the device's memory ran out in training",
        found=f"--micro-batch {recipe.micro_batch}: {found:.200}",
        fix=fix,
    )


def _try_step(context: TrainContext, micro_batch: int) -> None:
    """Take the memory of one step with micro-batches of another size; no weight is moved."""
    recipe, schedule, device = context.recipe, context.schedule, context.accelerator.device
    context.optimizer.zero_grad()
    moments: list[torch.Tensor] = []
    if not context.optimizer.state:  # before the first step the optimiser has none
        copies = range(recipe.optimizer.num_moments)
        moments = [torch.empty_like(p) for p in context.distiller.parameters() for _ in copies]
    cut = make_schedule(recipe.batch, micro_batch, schedule.rank, schedule.world)
    # Not through DDP: a backward pass that ran out of memory leaves it half way, for good. The bare
    # distiller has the same autocast, and gradients that are returned call none of DDP's hooks.
    trained = [p for p in context.distiller.parameters() if p.requires_grad]
    sums: tuple[torch.Tensor, ...] = ()  # of earlier micro-batches, as a step holds them
    with closing(replace(context, schedule=cut).stream(range(1))) as hosts:
        stored = [with_labels_on(host, device) for host in hosts]
        batches = decoded_batches(stored, device, context.cache)
        for found in map(partial(_gradients, context, trained), batches):
            sums = sums or found
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    del moments, sums


def _gradients(
    context: TrainContext, trained: Sequence[torch.Tensor], batch: Batch
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of a micro-batch, which nothing else is kept of."""
    outputs = context.distiller(batch.image, batch.boxes)
    batch = context.class_weights.give(batch)
    totals = term_totals(context.recipe.terms, outputs, batch, 0.0)
    found = torch.autograd.grad(totals.sum(), trained, allow_unused=True)
    return tuple(gradient for gradient in found if gradient is not None)
