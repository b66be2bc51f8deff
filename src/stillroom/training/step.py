"""One optimiser step's loss: sums divided by global counts, so that no split into ranks or
micro-batches changes it.

For a term with total t and count n over all micro-batches of all ranks the loss is weight * sum(t)
/ sum(n). DDP averages gradients over ranks, hence the factor `world`.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from stillroom.hashing import keyed_hash
from stillroom.losses import Term
from stillroom.types import Batch


def labels(terms: Sequence[Term]) -> tuple[str, ...]:
    """Return a log name for each term: its label, numbered where several share one."""
    names = [term.label for term in terms]
    return tuple(
        name if names.count(name) == 1 else f"{name}_{names[:i].count(name)}"
        for i, name in enumerate(names)
    )


def local_counts(terms: Sequence[Term], batches: Iterable[Batch], device: torch.device) -> Tensor:
    """Return each term's count over this rank's micro-batches, (terms,) float64."""
    total = torch.zeros(len(terms), dtype=torch.float64, device=device)
    for batch in batches:
        total += torch.stack([term.count(batch) for term in terms])
    return total


def seed_forward(seed: int, step: int, micro: int) -> None:
    """Seed torch's generators for one forward pass (dropout, DropPath), the same at any world."""
    torch.manual_seed(keyed_hash("forward", seed, step, micro) >> 1)


def totals(
    terms: Sequence[Term], outputs: dict[str, Tensor], batch: Batch, progress: float
) -> Tensor:
    """Return each term's sum over one micro-batch, (terms,) float32."""
    return torch.stack([term.total(outputs, batch, progress) for term in terms])


def forward_backward(
    model: nn.Module,
    terms: Sequence[Term],
    batches: Sequence[Batch],
    counts: Tensor,
    *,
    progress: float,
    world: int,
    seed_micro: Callable[[int], None],
    backward: Callable[[Tensor], object],
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """Run this rank's micro-batches of one step; `counts` are global. Returns the local totals,
    (terms,), detached.
    """
    weights = torch.tensor(
        [term.weight for term in terms], dtype=torch.float64, device=counts.device
    )
    factors = torch.where(counts > 0, weights * world / counts.clamp_min(1e-12), 0.0).float()
    done = torch.zeros(len(terms), device=counts.device)
    for i, batch in enumerate(batches):
        seed_micro(i)
        with nullcontext() if i == len(batches) - 1 else no_sync():
            sums = totals(terms, model(batch.image), batch, progress)
            backward((factors * sums).sum())
        done += sums.detach()
    return done
