"""Finds weights that no training leaves behind: not finite, whole filters of zeros, BatchNorm that
is still training.

Exact zeros only, and float32 only: of 24 trained networks looked at, two have filters below a
millionth of the layer's largest (up to 31 % of a layer) and none has one of zeros.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from torch import nn

MAX_ZEROS = 0.05  # share of a layer's filters, or of the channels that it listens to
_PICTURE = 4  # channels that may be a picture's, of which a grey one fills a third
_NAMED = 3  # faults that are told one by one
_FILTERED = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d


class Weights(NamedTuple):
    """One tensor of a network."""

    name: str
    values: np.ndarray
    filters: int | None = None  # the axis of the output's channels; None where there is none
    inputs: int | None = None  # the axis of the input's
    may_be_infinite: bool = False


def damage_of(tensors: Iterable[Weights]) -> tuple[str, ...]:
    """Return what is wrong with a network's tensors, in words; empty = nothing."""
    faults = [fault for tensor in tensors for fault in _faults(tensor)]
    more = len(faults) - _NAMED
    return (*faults[:_NAMED], *((f"and {more} more faults of the weights",) if more > 0 else ()))


def network_weights(network: nn.Module) -> Iterable[Weights]:
    """Yield every parameter and buffer of a torch network."""
    axes = {
        f"{name}.weight".lstrip("."): _axes(module)
        for name, module in network.named_modules()
        if isinstance(module, _FILTERED)
    }
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            yield Weights(name, tensor.float().cpu().numpy(), *axes.get(name, (None, None)))


def _axes(module: nn.Module) -> tuple[int | None, int | None]:
    if isinstance(module, nn.ConvTranspose2d):
        return (1, 0) if module.groups == 1 else (None, 0)
    return (0, None) if isinstance(module, nn.BatchNorm2d) else (0, 1)


def _faults(tensor: Weights) -> Iterable[str]:
    values = tensor.values
    bad = np.isnan(values) if tensor.may_be_infinite else ~np.isfinite(values)
    if bad.any():
        yield f"{int(bad.sum())} of {bad.size} values of the weights {tensor.name} are not finite"
    elif values.dtype == np.float32:
        zeros, count = _zeros(values, tensor.filters)
        if zeros > MAX_ZEROS * count:
            yield f"{zeros} of {count} filters of {tensor.name} are dead: all zeros"
            return
        zeros, count = _zeros(values, tensor.inputs)
        if count > _PICTURE and zeros > MAX_ZEROS * count:
            yield f"{zeros} of {count} inputs of {tensor.name} are dead: all zeros"


def _zeros(values: np.ndarray, axis: int | None) -> tuple[int, int]:
    """Return how many slices along an axis hold only zeros, and how many there are."""
    if axis is None:
        return 0, 0
    others = tuple(other for other in range(values.ndim) if other != axis)
    return int((values == 0).all(others).sum()), values.shape[axis]
