"""Pictures for people: masks in colour, blends, and labelled grids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from stillroom.types import IGNORE

Rgb = UInt8[np.ndarray, "h w 3"]
_VOID = (224, 224, 192)
_MARGIN_PX = 4
_TITLE_PX = 18
_SMALL_PX = 128
_SWATCH_PX = 16


def colour_mask(mask: Integer[np.ndarray, "h w"], palette: Sequence[Sequence[int]]) -> Rgb:
    """Return a mask of class indices as colours; void is pale, a value outside the palette grey."""
    table = np.full((256, 3), 128, np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8)
    table[IGNORE] = _VOID
    return table[mask]


def blend(
    image: Rgb,
    mask: Integer[np.ndarray, "h w"],
    palette: Sequence[Sequence[int]],
    share: float = 0.5,
) -> Rgb:
    """Return the picture with its mask laid over it; class 0 stays clear when it is called
    background by being black.
    """
    colour = colour_mask(mask, palette).astype(np.float32)
    weight = np.full((*mask.shape, 1), share, np.float32)
    if tuple(palette[0]) == (0, 0, 0):
        weight[mask == 0] = 0
    return (image * (1 - weight) + colour * weight).round().astype(np.uint8)


def grid(
    rows: Sequence[Sequence[Rgb]],
    titles: Sequence[str],
    legend: Sequence[tuple[str, Sequence[int]]] = (),
) -> Image.Image:
    """Return one picture of equal tiles, `titles` above the columns, and below them a legend of
    names and colours; small tiles are enlarged.
    """
    times = max(1, _SMALL_PX // max(rows[0][0].shape[:2]))
    rows = [[tile.repeat(times, 0).repeat(times, 1) for tile in row] for row in rows]
    height, width = rows[0][0].shape[:2]
    step_x, step_y = width + _MARGIN_PX, height + _MARGIN_PX
    size_x, size_y = step_x * len(titles) + _MARGIN_PX, step_y * len(rows) + _TITLE_PX + _MARGIN_PX
    font = ImageFont.load_default(size=13)
    places, bottom = _legend_places(legend, font, size_x, size_y)
    sheet = Image.new("RGB", (size_x, bottom), "white")
    draw = ImageDraw.Draw(sheet)
    for x, title in enumerate(titles):
        draw.text((_MARGIN_PX + x * step_x, 2), title, fill="black", font=font)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            place = (_MARGIN_PX + x * step_x, _TITLE_PX + y * step_y)
            sheet.paste(Image.fromarray(tile), place)
    for (x, y), (name, colour) in zip(places, legend, strict=True):
        draw.rectangle((x, y + 3, x + 11, y + 14), fill=tuple(colour), outline="grey")
        draw.text((x + _SWATCH_PX, y), name, fill="black", font=font)
    return sheet


def legend_of(
    classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> list[tuple[str, Sequence[int]]]:
    """Return the legend of masks in these colours, void included."""
    return [*zip(classes, palette, strict=False), ("void", _VOID)]


def _legend_places(
    legend: Sequence[tuple[str, object]], font: Any, width: int, top: int
) -> tuple[list[tuple[int, int]], int]:
    """Return where each entry begins, line after line, and where the last line ends."""
    places, x, y = [], _MARGIN_PX, top
    for name, _ in legend:
        needed = _SWATCH_PX + int(font.getlength(name)) + 3 * _MARGIN_PX
        if x > _MARGIN_PX and x + needed > width:
            x, y = _MARGIN_PX, y + _TITLE_PX
        places.append((x, y))
        x += needed
    return places, y + _TITLE_PX if legend else top
