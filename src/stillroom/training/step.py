"""The arithmetic of one optimiser step's loss: sums divided by global counts, so that no split into
ranks or micro-batches changes it.

For a term with total t and count n over all micro-batches of all ranks the loss is weight * sum(t)
/ sum(n). DDP averages gradients over ranks, hence the factor `world`.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.hashing import keyed_hash
from stillroom.losses import Temperature, Term, epoch_progress
from stillroom.losses.class_weights import vector
from stillroom.training.batchnorm import RunningBuffers
from stillroom.training.context import TrainContext
from stillroom.training.parameters import drop_frozen_gradients
from stillroom.types import Batch


def labels(terms: Sequence[Term]) -> tuple[str, ...]:
    """Return a log name for each term: its label, numbered where several share one."""
    names = [term.label for term in terms]
    return tuple(
        name if names.count(name) == 1 else f"{name}_{names[:i].count(name)}"
        for i, name in enumerate(names)
    )


def temperatures(terms: Sequence[Term], progress: float) -> dict[str, float]:
    """Return the temperature of each term that has one, by the name that the log has for it."""
    scheduled = {
        n: getattr(t, "temperature", None) for n, t in zip(labels(terms), terms, strict=True)
    }
    return {
        f"temperature_{name}": temperature.at(progress)
        for name, temperature in scheduled.items()
        if isinstance(temperature, Temperature)
    }


def step_counts(context: TrainContext, batches: Iterable[Batch]) -> Float[Tensor, " terms"]:
    """Return each term's count over all micro-batches of all ranks, float64; running class weights
    follow the step. One sum over the ranks.
    """
    terms, running = context.recipe.terms, context.class_weights
    own = [[local_counts(terms, batch), *running.pixels(batch)] for batch in batches]
    parts = [torch.stack(part).sum(0) for part in zip(*own, strict=True)]
    counts, *pixels = context.reduce(torch.cat(parts)).split([len(part) for part in parts])
    running.follow(pixels)
    return counts


def local_counts(terms: Sequence[Term], batch: Batch) -> Float[Tensor, " terms"]:
    """Return each term's count over one micro-batch, float64."""
    return torch.stack([term.count(batch) for term in terms])


def loss_factors(
    term_weights: Sequence[float], counts: Float[Tensor, " terms"], world: int
) -> Float[Tensor, " terms"]:
    """Return what a term's total is multiplied by, float32: weight * world / global count, and 0
    where nothing counts.
    """
    weights = vector(tuple(term_weights), counts.device)
    return torch.where(counts > 0, weights * world / counts.clamp_min(1e-12), 0.0).float()


def term_totals(
    terms: Sequence[Term], outputs: dict[str, Tensor], batch: Batch, progress: float
) -> Float[Tensor, " terms"]:
    """Return each term's sum over one micro-batch, float32."""
    return torch.stack([term.total(outputs, batch, progress) for term in terms])


def seed_forward(seed: int, step: int, micro: int) -> None:
    """Seed torch's generators for one forward pass (dropout, DropPath), the same at any world."""
    torch.manual_seed(keyed_hash("forward", seed, step, micro) >> 1)


def forward_and_backward(
    context: TrainContext,
    batches: Iterable[Batch],
    factors: Tensor,
    buffers: RunningBuffers,
    step: int,
) -> Tensor:
    """Leave the gradient of a step over all ranks; return this rank's total of each term. One
    micro-batch is held at a time.
    """
    micros, source = context.schedule.micro_batches(), iter(batches)
    totals = torch.zeros_like(factors)
    buffers.begin()
    for micro in micros:
        seed_forward(context.recipe.seed, step, micro)
        with nullcontext() if micro == micros[-1] else context.accelerator.no_sync(context.model):
            totals += _backward(context, next(source), factors, step)
        buffers.keep(micro)
    buffers.finish(context.reduce)
    return totals


def _backward(context: TrainContext, batch: Batch, factors: Tensor, step: int) -> Tensor:
    """Add a micro-batch's gradient; return its total of each term."""
    progress = epoch_progress(step // context.epoch_steps, context.recipe.epochs)
    outputs = context.model(batch.image, batch.boxes)
    batch = context.class_weights.give(batch)
    sums = term_totals(context.recipe.terms, outputs, batch, progress)
    context.accelerator.backward((factors * sums).sum())
    return sums.detach()


def apply_gradient(context: TrainContext, step: int) -> Float[Tensor, ""]:
    """Move the weights by the gradient of a step and let the average follow; return the gradient's
    norm before clipping.
    """
    recipe, distiller = context.recipe, context.distiller
    drop_frozen_gradients(distiller, recipe, step // context.epoch_steps)
    norm = context.accelerator.clip_grad_norm_(distiller.parameters(), recipe.optimizer.clip or inf)
    assert norm is not None
    context.optimizer.step()  # with a scaler (fp16) not where a gradient is not finite
    context.optimizer.zero_grad()
    if context.average is not None:
        context.average.update(step)
    return norm
