"""Logits of a network's resolution as what they say of every pixel of a picture of another size.

Logits are resampled bilinearly (with antialiasing where the picture is smaller), not masks: edges
stay smooth, and classes are compared only at the end.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from stillroom.errors import UserError

Size = tuple[int, int]  # height, width


def logits_at(logits: Float[Tensor, "k y x"], size: Size) -> Float[Tensor, "k h w"]:
    """Return logits at `size`."""
    if logits.shape[1:] == size:
        return logits
    options = {"mode": "bilinear", "align_corners": False, "antialias": True}
    return functional.interpolate(logits[None], size, **options)[0]


def mask_at(logits: Float[Tensor, "k y x"], size: Size) -> UInt8[np.ndarray, "h w"]:
    """Return class indices at `size`; one class at a time, since a large picture's maps are many
    times its own size.
    """
    if len(logits) == 1:
        return (logits_at(logits, size)[0] > 0).numpy().astype(np.uint8)
    best = logits_at(logits[:1], size)[0]
    mask = torch.zeros(size, dtype=torch.uint8)
    for number in range(1, len(logits)):
        other = logits_at(logits[number : number + 1], size)[0]
        mask[other > best] = number
        best = torch.maximum(best, other)
    return mask.numpy()


def probabilities_at(logits: Float[Tensor, "k y x"], size: Size) -> Float[Tensor, "k h w"]:
    """Return probabilities at `size`; of a binary task the foreground's alone."""
    logits = logits_at(logits, size)
    return logits.sigmoid() if len(logits) == 1 else logits.softmax(0)


def tiled(
    image: UInt8[np.ndarray, "h w 3"],
    tile: Size,
    say: Callable[[UInt8[np.ndarray, "y x 3"]], Float[Tensor, "k y x"]],
) -> Float[Tensor, "k h w"]:
    """Return logits of a picture from tiles of it at its own scale, which overlap by a quarter or
    more; where they do, the one whose middle is nearer counts for more.

    `say` gives the logits of a tile, pixel by pixel. UserError for a picture smaller than one.
    """
    height, width = image.shape[:2]
    if height < tile[0] or width < tile[1]:
        raise UserError(
            "a picture is smaller than one tile",
            found=f"{height} x {width} pixels (height x width)",
            wanted=f"at least {tile[0]} x {tile[1]}",
            fix="leave out --tiles",
        )
    weight = _tent(tile[0])[:, None] * _tent(tile[1])[None]
    total, weights = torch.zeros(0), torch.zeros(height, width)
    for y in _starts(height, tile[0]):
        for x in _starts(width, tile[1]):
            logits = say(np.ascontiguousarray(image[y : y + tile[0], x : x + tile[1]]))
            if not total.numel():
                total = torch.zeros(len(logits), height, width)
            total[:, y : y + tile[0], x : x + tile[1]] += weight * logits
            weights[y : y + tile[0], x : x + tile[1]] += weight
    return total / weights


def _starts(length: int, tile: int) -> list[int]:
    """Return where tiles begin, so that the last one ends at the edge."""
    number = 1 + -(-(length - tile) * 4 // (tile * 3))
    return [round(i * (length - tile) / max(1, number - 1)) for i in range(number)]


def _tent(length: int) -> Float[Tensor, "n"]:
    return 1 - (torch.arange(length) - (length - 1) / 2).abs() / (length / 2 + 0.5)
