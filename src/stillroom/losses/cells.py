"""Which cells of a grid count, and maps brought from one grid to another."""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from stillroom.types import IGNORE


def labelled(mask: Int[Tensor, "b h w"], inside: Bool[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """Return where a label is known: neither void nor padding."""
    return inside & (mask != IGNORE)


def inside_at(inside: Bool[Tensor, "b h w"], y: int, x: int) -> Bool[Tensor, "b {y} {x}"]:
    """Return which cells of a y x x grid are valid: those whose centre pixel is no padding."""
    return at_centres(inside, y, x)


def at_centres(pixels: Shaped[Tensor, "b h w"], y: int, x: int) -> Shaped[Tensor, "b {y} {x}"]:
    """Return the values of the pixels in which the centres of a y x x grid's cells lie."""
    h, w = pixels.shape[1:]
    if h % y == 0 and w % x == 0:
        rows, columns = h // y, w // x
        return pixels[:, rows // 2 :: rows, columns // 2 :: columns]
    row, column = (
        torch.arange(1, 2 * cells, 2, device=pixels.device) * size // (2 * cells)
        for cells, size in ((y, h), (x, w))
    )
    return pixels[:, row[:, None], column]


def resized(
    values: Float[Tensor, "b c y x"], inside: Bool[Tensor, "b h w"], size: tuple[int, int]
) -> Float[Tensor, "b c Y X"]:
    """Return a map at another grid (Y, X), fp32; as it is where it has that grid already.

    Bilinear without aligned corners; where a whole number of cells becomes one in both directions,
    their mean, as stage 1 averages a tap to a stride (bilinear would see 4 of 64). Cells that show
    nothing but padding are left out, and the others' shares add up to 1 again.
    """
    y, x = values.shape[2:]
    if (y, x) == size:
        return values
    shown = functional.adaptive_max_pool2d(inside.float().unsqueeze(1), (y, x))
    with autocast_off(values):
        share = _at_grid(shown, size)
        filled = _at_grid(kept(values, shown[:, 0] > 0), size)
        return filled / share.clamp_min(1e-6)  # above 0 where a cell's centre is inside


def _at_grid(values: Float[Tensor, "b c y x"], size: tuple[int, int]) -> Float[Tensor, "b c Y X"]:
    y, x = values.shape[2:]
    if y % size[0] or x % size[1]:
        return functional.interpolate(values, size, mode="bilinear", align_corners=False)
    return functional.avg_pool2d(values, (y // size[0], x // size[1]))


def kept(
    values: Float[Tensor, "b c y x"], valid: Bool[Tensor, "b y x"]
) -> Float[Tensor, "b c y x"]:
    """Return the values in fp32, zero where not valid; nothing flows back from there."""
    return values.float().masked_fill(~valid.unsqueeze(1), 0.0)


def autocast_off(values: Tensor) -> torch.autocast:
    """Return a block in which what is computed on the device of `values` stays fp32."""
    return torch.autocast(values.device.type, enabled=False)
