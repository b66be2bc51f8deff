"""How a recipe's student is optimised."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """AdamW: the rate rises linearly in the warm-up, then falls by a cosine."""

    lr: float = 1e-3  # learning rate at the end of the warm-up
    # decoupled weight decay; biases and normalisation layers are left out
    weight_decay: float = 1e-4
    warmup: float = 0.05  # share of all steps
    final: float = 0.01  # share of lr at which the cosine ends
    clip: float = 1.0  # largest L2 norm of the gradient; 0 = no clipping
