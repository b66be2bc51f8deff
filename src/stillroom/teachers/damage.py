"""Finds weights that no training leaves behind: values that are not finite."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch import nn

_NAMED = 3  # faults that are told one by one


class Weights(NamedTuple):
    """One tensor of a network."""

    name: str
    values: np.ndarray
    may_be_infinite: bool = False


def damage_of(tensors: Iterable[Weights]) -> tuple[str, ...]:
    """Return what is wrong with a network's tensors, in words; empty = nothing."""
    faults = []
    for name, values, may_be_infinite in tensors:
        bad = np.isnan(values) if may_be_infinite else ~np.isfinite(values)
        if bad.any():
            count = f"{int(bad.sum())} of {bad.size}"
            faults.append(f"{count} values of the weights {name} are not finite")
    more = len(faults) - _NAMED
    return (*faults[:_NAMED], *((f"and {more} more faults of the weights",) if more > 0 else ()))


def network_weights(network: nn.Module) -> Iterable[Weights]:
    """Yield every parameter and buffer of a torch network."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            yield Weights(name, tensor.float().cpu().numpy())
