"""A moving average of a network's weights, equal on every rank because the weights are.

Kept beside the network and put into it to evaluate and to save, so that all that Accelerate has
done to the network (autocast, devices) holds for the average too; a second module, as torch's
`AveragedModel` is, would have none of it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stillroom.errors import DamageError

# One launch for a list of tensors, as torch's optimisers do it.
_copy = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
_lerp = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]


class Average:
    """The average of all weights and of BatchNorm's running buffers; counters are not averaged."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Begin at the network's weights; where it lies on a device, it must lie there already."""
        self._decay = decay
        state = network.state_dict(keep_vars=True)
        unique = {id(t): name for name, t in reversed(state.items()) if t.is_floating_point()}
        self._names = sorted(unique.values())  # shared tensors once
        self._own = [state[name] for name in self._names]
        self._mean = [tensor.detach().clone() for tensor in self._own]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step` (from 0).

        The decay grows, (1 + step) / (10 + step) at most, so that first weights are soon forgotten.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        _lerp(self._mean, [tensor.detach() for tensor in self._own], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the network has the average's weights; after it, its own to the last bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        held = [tensor.detach().clone() for tensor in self._own]
        _copy(self._own, self._mean)
        _copy(self._mean, held)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by the network's names."""
        return dict(zip(self._names, self._mean, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a stored average; DamageError where it is of another network."""
        found = {name: tensor.shape for name, tensor in state.items()}
        wanted = {name: t.shape for name, t in zip(self._names, self._own, strict=True)}
        if found != wanted:
            raise DamageError(
                "a stored average is of another network",
                found=f"{len(found)} tensors",
                wanted=f"{len(wanted)} tensors of the network's names and shapes",
            )
        for name, mean in zip(self._names, self._mean, strict=True):
            mean.copy_(state[name])
