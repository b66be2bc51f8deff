"""What every network here has in common: taps with names, and a smallest step in picture size."""

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.errors import UserError


def require_taps(wanted: tuple[str, ...], legal: tuple[str, ...]) -> None:
    """Raise UserError for a tap that the network does not have, listing those that it has."""
    for tap in wanted:
        if tap not in legal:
            raise UserError(
                "the network has no such tap",
                found=tap,
                wanted="one of " + ", ".join(legal),
                fix=f"name one of these instead of {tap}",
            )


def require_size(image: Float[Tensor, "b 3 h w"], step: int) -> None:
    """Raise UserError for a size that is no multiple of `step` pixels, naming the nearest legal.

    Says nothing while the network is being exported: there the size is free.
    """
    is_tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if torch.compiler.is_compiling() or is_tracing:
        return
    height, width = image.shape[2:]
    if height % step or width % step:
        raise UserError(
            "the network cannot take pictures of this size",
            found=f"{height} x {width} pixels (height x width)",
            wanted=f"multiples of {step}",
            fix=f"the nearest legal size is {_nearest(height, step)} x {_nearest(width, step)}",
        )


def _nearest(size: int, step: int) -> int:
    return max(step, (size + step // 2) // step * step)
