"""The learning rate as arithmetic on the step: linear warm-up, then a cosine; no state to save."""

import math

import torch
from torch import nn
from torch.optim import AdamW as TorchAdamW

from stillroom.recipe_optimizer import AdamW


def learning_rate(config: AdamW, step: int, steps: int) -> float:
    """Return the rate of step `step` of `steps`."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    share = (step - warm) / max(1, steps - 1 - warm)
    return config.lr * (config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * share)))


def make_optimizer(config: AdamW, model: nn.Module, device: torch.device) -> TorchAdamW:
    """Build AdamW over all parameters that train; biases and normalisation layers do not decay.

    Fused on CUDA: the unfused one waits for the device in every step under a gradient scaler.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return TorchAdamW(groups, lr=config.lr, fused=device.type == "cuda" or None)
