"""Features averaged over blocks of cells before they are kept, where a stride is asked for."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from stillroom.errors import UserError


def pooled(
    outputs: Mapping[str, Float[Tensor, "b _ _ _"]],
    strides: Mapping[str, int],
    size: tuple[int, int],
) -> dict[str, Float[Tensor, "b _ _ _"]]:
    """Return outputs, those that `strides` names averaged to so many pixels a cell of a picture of
    `size` (h, w).

    Raises UserError where that is no whole number of an output's cells.
    """
    answers = dict(outputs)
    for name, stride in strides.items():
        answers[name] = _average(name, answers[name].float(), stride, size)
    return answers


def _average(
    name: str, feature: Float[Tensor, "b c y x"], stride: int, size: tuple[int, int]
) -> Float[Tensor, "b c Y X"]:
    (h, w), (y, x) = size, feature.shape[2:]
    rows, columns = y * stride // h, x * stride // w  # cells that become one
    is_whole = rows * h == y * stride and columns * w == x * stride and min(rows, columns) >= 1
    if not is_whole or y % rows or x % columns:
        raise UserError(
            f"the target {name!r} cannot be averaged to stride {stride}",
            found=f"{y} x {x} cells of a picture of {h} x {w} pixels",
            wanted=f"a multiple of {h / y:g} that cuts the picture without a rest",
        )
    return functional.avg_pool2d(feature, (rows, columns))
