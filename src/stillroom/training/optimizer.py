"""The optimiser of a run over the parameters that train, and the learning rate of a step."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.recipe import Recipe
from stillroom.recipe_optimizer import Moment, Optimizer


def learning_rate(recipe: Recipe, moment: Moment) -> float:
    """Return the rate of a step, of parameters whose group has the factor 1."""
    return recipe.schedule.rate(recipe.optimizer.peak(recipe.batch), moment)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its rate: `rate` times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def make_optimizer(
    config: Optimizer,
    model: nn.Module,
    device: torch.device,
    slowed: Collection[Tensor] = (),
    factor: float = 1.0,
) -> torch.optim.Optimizer:
    """Build the optimiser over all parameters that train; biases and normalisation layers do not
    decay, the rate of those in `slowed` is multiplied by `factor`.

    Fused on CUDA: the unfused one waits for the device in every step under a gradient scaler.
    """
    slow = {id(parameter) for parameter in slowed}
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for is_slowed in (False, True):
        for decays in (True, False):
            groups[is_slowed, decays] = {
                "params": [],
                "weight_decay": config.weight_decay if decays else 0.0,
                "factor": factor if is_slowed else 1.0,
            }
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in slow, parameter.ndim > 1]["params"].append(parameter)
    used = [group for group in groups.values() if group["params"]]
    return config.build(used, fused=device.type == "cuda" or None)
