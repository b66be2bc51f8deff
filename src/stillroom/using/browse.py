"""Pictures in a page: thumbnails, and a viewer with an edge to move between two masks."""

import json
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stillroom.pictures.dataset import PictureSet
from stillroom.pictures.draw import VOID_COLOUR, WRONG_COLOUR
from stillroom.types import IGNORE
from stillroom.using.cached_masks import CachedMasks
from stillroom.using.examples import Example, Score, choose, examples, legend_for
from stillroom.using.page import data_url, legend, paragraph
from stillroom.using.student import Trained
from stillroom.using.student_rows import class_names, palette_for

_WORST, _MOST = 8, 64  # pictures of a page
_MOST_PX = 384  # of a side, in a page
Colour = tuple[int, int, int]


def viewer(
    students: Mapping[str, Trained],
    pictures: PictureSet,
    split: str,
    scores: Sequence[Score],
    teacher: CachedMasks | None,
) -> str:
    """Return the viewer and pictures for it, the worst under a heading of their own; "" where there
    is none. `scores` are those of a split's pictures, at the first student's size.

    A page holds one at most.
    """
    if not scores:
        return ""
    first = next(iter(students.values()))
    palette = palette_for(first, pictures)
    shown = [*examples(students, pictures, split, choose(scores, _WORST, _MOST), teacher)]
    names = [*shown[0].masks]
    thumbs = [_thumb(one) for one in shown]
    layers = [_layers(one, palette) for one in shown]
    colours = legend_for(class_names(first, pictures), palette)
    sides = [*names, *(f"difference: {n}" for n in names if n not in ("truth", "teacher")), "none"]
    worst = f"<h3>Worst pictures</h3>{_strip(thumbs[:_WORST])}"
    others = f"<h3>Others, over the whole split</h3>{_strip(thumbs[_WORST:])}"
    text = json.dumps(layers).replace("<", "\\u003c")
    return (
        f"{_controls(sides, names)}{legend(colours)}{worst}"
        f"{others if len(shown) > _WORST else ''}"
        f'<script type="application/json" id="layers">{text}</script>'
        + paragraph("mIoU of a picture is that of the classes in its truth or its prediction.")
    )


def _controls(sides: Sequence[str], names: Sequence[str]) -> str:
    def choice(side: str, chosen: str) -> str:
        options = "".join(
            f"<option{' selected' * (name == chosen)}>{escape(name)}</option>" for name in sides
        )
        return f'<label>{side} <select id="{side}">{options}</select></label>'

    return (
        '<div class="viewer" id="viewer" hidden><div class="stage" id="stage">'
        '<img id="base" alt=""><img class="layer" id="left-layer" alt="">'
        '<img class="layer" id="right-layer" alt=""><div class="edge" id="edge"></div>'
        '<span class="l" id="left-name"></span><span class="r" id="right-name"></span></div>'
        '<input type="range" id="split" min="0" max="100" value="50" '
        'aria-label="edge between the left and the right mask, percent">'
        f'<div class="controls">{choice("left", names[0])}{choice("right", names[-1])}</div>'
        '<div class="controls"><button type="button" id="before">previous</button>'
        '<button type="button" id="after">next</button><label>mask '
        '<input type="range" id="strength" min="0" max="100" value="60" '
        'aria-label="strength of the masks, percent"></label></div>'
        '<p class="dim" id="shown" aria-live="polite"></p></div>'
    )


def _strip(thumbs: Sequence[str]) -> str:
    return f'<div class="strip">{"".join(thumbs)}</div>'


def _thumb(one: Example) -> str:
    label = escape(f"{one.key}, mIoU {one.score:.3f}")
    source = data_url(
        _small(Image.fromarray(one.image), Image.Resampling.BILINEAR), "WEBP", quality=80
    )
    return (
        f'<button type="button" title="{label}" aria-pressed="false">'
        f'<img src="{source}" alt="{label}" loading="lazy">{one.score:.3f}</button>'
    )


def _layers(one: Example, palette: Sequence[Colour]) -> dict[str, str]:
    found = {name: _mask_url(mask, palette) for name, mask in one.masks.items()}
    if (reference := one.reference) is not None:
        for name, mask in one.masks.items():
            if name not in ("truth", "teacher"):
                wrong = np.where(reference == IGNORE, IGNORE, mask != reference).astype(np.uint8)
                found[f"difference: {name}"] = _mask_url(wrong, [(0, 0, 0), WRONG_COLOUR])
    return found


def _mask_url(mask: UInt8[np.ndarray, "h w"], palette: Sequence[Colour]) -> str:
    """Return a palette PNG; class 0 is clear where it is called background by being black."""
    image = _small(Image.fromarray(mask), Image.Resampling.NEAREST)
    colours = np.full((256, 3), 128, np.uint8)
    colours[: len(palette)], colours[IGNORE] = np.array(palette, np.uint8), VOID_COLOUR
    image.putpalette(colours.tobytes())
    clear = {"transparency": 0} if tuple(palette[0]) == (0, 0, 0) else {}
    return data_url(image, "PNG", optimize=True, **clear)


def _small(image: Image.Image, resampling: Image.Resampling) -> Image.Image:
    share = min(1.0, _MOST_PX / max(image.size))
    width, height = (max(1, round(side * share)) for side in image.size)
    return image.resize((width, height), resampling)
