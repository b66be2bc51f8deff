"""BatchNorm's running buffers (InstanceNorm's, where it has any), the same at any world size.

They become what one process would have that ran every micro-batch of a step in order: each
micro-batch leaves its own statistics, one sum over the ranks brings them together, and the moving
average is applied once a micro-batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

# One launch for a list of tensors, as torch's optimisers do it.
_zero = torch._foreach_zero_  # pyright: ignore[reportPrivateImportUsage]
_copy = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
_add = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]


class RunningBuffers:
    """The running means and variances of a network's modules that are in training mode.

    Within a step (`begin`, `keep` after each backward pass, `finish`) the modules' momentum is 1
    and their buffers hold one micro-batch's statistics; before and after it all is as torch has it.
    A module that runs twice in a forward pass counts with its last run.
    """

    def __init__(self, network: nn.Module, num_micro_batches: int) -> None:
        self._network = network
        self._k = num_micro_batches  # of a step, over all ranks
        self._moving: list[Any] = []  # of _NormBase

    def begin(self) -> None:
        """Note the buffers as they are, and let a forward pass leave what it saw alone."""
        moving: list[Any] = [m for m in self._network.modules() if _moves(m)]
        if moving != self._moving:
            self._learn(moving)
        if moving:
            self._running = torch.cat([buffer.flatten() for buffer in self._buffers])
            self._seen = self._running.new_zeros(self._k, len(self._running))
            _zero(self._buffers)
        for module in moving:
            module.momentum = 1.0

    def keep(self, micro: int) -> None:
        """Take the statistics of micro-batch `micro` of this step."""
        if self._moving:
            torch.cat([buffer.flatten() for buffer in self._buffers], out=self._seen[micro])
            _zero(self._buffers)  # 1 * new + 0 * old is NaN where old is

    def finish(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Move the buffers on by every micro-batch; `reduce` sums a tensor over the ranks.

        A micro-batch with a statistic that is not finite (fp16 may overflow) moves nothing; a
        cumulative average (momentum None) counts it all the same.
        """
        if not self._moving:
            return
        seen = reduce(self._seen)  # each row comes from one rank, so the sum is exact
        finite = seen.isfinite().all(1)
        for i in range(self._k):
            now = torch.where(finite[i], seen[i], self._running)
            self._running = torch.lerp(self._running, now, self._rate(i))
        sizes = [buffer.numel() for buffer in self._buffers]
        _copy(self._buffers, list(self._running.split(sizes)))
        for i, module in enumerate(self._moving):
            self._tracked[i] += self._k * isinstance(module, _BatchNorm)  # others do not count
            module.momentum = self._momenta[i]
        _zero(self._counters)
        _add(self._counters, self._tracked)

    def _learn(self, moving: list[Any]) -> None:
        """Note what does not change while the same modules move."""
        self._moving = moving
        self._momenta = [module.momentum for module in moving]
        self._buffers = [b for m in moving for b in (m.running_mean, m.running_var)]
        self._counters = [module.num_batches_tracked for module in moving]
        self._tracked = [int(counter) for counter in self._counters]
        self._fixed = None if None in self._momenta else self._spread(self._momenta)

    def _rate(self, i: int) -> Float[Tensor, " n"]:
        """Return the share that micro-batch `i` has in each value of the moving average."""
        if self._fixed is not None:
            return self._fixed
        pairs = zip(self._momenta, self._tracked, strict=True)
        return self._spread([1 / (n + i + 1) if m is None else m for m, n in pairs])

    def _spread(self, factors: list[float | None]) -> Float[Tensor, " n"]:
        """Return a factor per module as one per value of its two buffers."""
        sizes = [2 * module.num_features for module in self._moving]
        values = [factor for f, n in zip(factors, sizes, strict=True) for factor in [f] * n]
        return torch.tensor(values, dtype=torch.float32, device=self._buffers[0].device)


def _moves(module: nn.Module) -> bool:
    """Return whether a forward pass changes a module's running statistics."""
    return (
        isinstance(module, _NormBase)
        and module.training
        and module.running_mean is not None
        and (module.momentum is not None or isinstance(module, _BatchNorm))
    )
