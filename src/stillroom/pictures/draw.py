"""Pictures for people: masks in colour, blends, and labelled grids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from stillroom.types import IGNORE

Rgb = UInt8[np.ndarray, "h w 3"]
VOID_COLOUR, WRONG_COLOUR = (224, 224, 192), (255, 0, 80)
_MARGIN_PX = 4
_TITLE_PX = 18
_SMALL_PX = 128
_SWATCH_PX = 16


def colour_mask(mask: Integer[np.ndarray, "h w"], palette: Sequence[Sequence[int]]) -> Rgb:
    """Return a mask of class indices as colours; void is pale, a value outside the palette grey."""
    table = np.full((256, 3), 128, np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8)
    table[IGNORE] = VOID_COLOUR
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


def cut_out(image: Rgb, box: Sequence[float], size: tuple[int, int]) -> UInt8[np.ndarray, "y x 3"]:
    """Return what a box x0, y0, x1, y1 (pixels) shows, at `size` (y, x)."""
    x0, y0, x1, y1 = box
    bilinear = Image.Resampling.BILINEAR
    return np.array(Image.fromarray(image).resize((size[1], size[0]), bilinear, (x0, y0, x1, y1)))


def mistakes(
    image: Rgb, mask: Integer[np.ndarray, "h w"], truth: Integer[np.ndarray, "h w"]
) -> Rgb:
    """Return the picture in dim grey, with what differs from the truth in one colour; void is
    pale.
    """
    grey = np.asarray(Image.fromarray(image).convert("L"))
    seen = np.repeat((grey // 2)[:, :, None], 3, 2)
    seen[mask != truth] = WRONG_COLOUR
    seen[truth == IGNORE] = VOID_COLOUR
    return seen


def grid(
    rows: Sequence[Sequence[Rgb]],
    titles: Sequence[str],
    captions: Sequence[str] = (),
    legend: Sequence[tuple[str, Sequence[int]]] = (),
) -> Image.Image:
    """Return one picture of equal tiles, `titles` above the columns; small tiles are enlarged.

    Where given, a caption stands below each row, and a legend of names and colours at the end.
    """
    times = max(1, _SMALL_PX // max(rows[0][0].shape[:2]))
    rows = [[tile.repeat(times, 0).repeat(times, 1) for tile in row] for row in rows]
    height, width = rows[0][0].shape[:2]
    below = _TITLE_PX if captions else 0
    step_x, step_y = width + _MARGIN_PX, height + _MARGIN_PX + below
    font = ImageFont.load_default(size=13)
    places = _legend_places(legend, step_x * len(titles), font)
    end = _TITLE_PX + step_y * len(rows)
    last = places[-1][1] + _TITLE_PX if places else 0
    sheet = Image.new("RGB", (step_x * len(titles) + _MARGIN_PX, end + last + _MARGIN_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for x, title in enumerate(titles):
        draw.text((_MARGIN_PX + x * step_x, 2), title, fill="black", font=font)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            place = (_MARGIN_PX + x * step_x, _TITLE_PX + y * step_y)
            sheet.paste(Image.fromarray(tile), place)
    for y, caption in enumerate(captions):
        place = (_MARGIN_PX, _TITLE_PX + y * step_y + height + 1)
        draw.text(place, caption, fill="black", font=font)
    for (name, colour), (x, y) in zip(legend, places, strict=True):
        box = (x, end + y + 3, x + 12, end + y + 15)
        draw.rectangle(box, fill=tuple(colour), outline="black")
        draw.text((x + 17, end + y + 2), name, fill="black", font=font)
    return sheet


def legend_of(
    classes: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the legend of masks in these colours, void included."""
    names = classes or [f"class {number}" for number in range(len(palette))]
    return [*zip(names, palette, strict=True), ("void", VOID_COLOUR)]


def _legend_places(
    legend: Sequence[tuple[str, Sequence[int]]], width: int, font: Any
) -> list[tuple[int, int]]:
    """Return x and y of each entry, in lines of a width, pixels."""
    places, x, y = [], _MARGIN_PX, 0
    for name, _ in legend:
        needed = 34 + int(font.getlength(name))
        if x > _MARGIN_PX and x + needed > width:
            x, y = _MARGIN_PX, y + _TITLE_PX
        places.append((x, y))
        x += needed
    return places
