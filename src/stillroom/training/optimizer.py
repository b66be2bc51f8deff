"""The learning rate as arithmetic on the step: linear warm-up, then a cosine; no state to save."""

import math

from torch import nn
from torch.optim import AdamW as TorchAdamW

from stillroom.recipe import AdamW


def learning_rate(config: AdamW, step: int, steps: int) -> float:
    """Return the rate of step `step` of `steps`."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    share = (step - warm) / max(1, steps - 1 - warm)
    return config.lr * (config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * share)))


def make_optimizer(config: AdamW, model: nn.Module) -> TorchAdamW:
    """Build AdamW over all parameters that train; biases and normalisation layers do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return TorchAdamW([group for group in groups if group["params"]], lr=config.lr)
