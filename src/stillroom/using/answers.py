"""What people get of a mask: a blend, a palette file, a cutout, probabilities, counts."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from stillroom.pictures.draw import Rgb, blend
from stillroom.pictures.labels import palette_of
from stillroom.using.resampling import Size, probabilities_at
from stillroom.using.student import Trained

Mode = Literal["blend", "mask", "cutout"]
Mask = UInt8[np.ndarray, "h w"]
Palette = Sequence[tuple[int, int, int]]


def names_and_palette(trained: Trained) -> tuple[list[str], Palette]:
    """Return names and colours of the classes; numbers and VOC's where it was trained without."""
    classes = trained.about["classes"]
    if not classes:
        k = trained.num_classes
        classes = [f"class {number}" for number in range(k)]
    return classes, trained.about.get("palette") or palette_of(len(classes))


def shown(image: Rgb, mask: Mask, palette: Palette, mode: Mode) -> Image.Image:
    """Return a picture with its mask laid over it, the mask with its palette (the values are the
    classes), or the picture without class 0: transparent, and black below.
    """
    if mode == "blend":
        return Image.fromarray(blend(image, mask, palette))
    if mode == "mask":
        found = Image.fromarray(mask, "P")
        found.putpalette([value for colour in palette for value in colour])
        return found
    kept = (mask > 0)[:, :, None]
    return Image.fromarray(np.dstack([image * kept, kept * np.uint8(255)]))


def save_probabilities(logits: Float[Tensor, "k y x"], size: Size, target: Path) -> None:
    """Write `NAME.probability-K.png` for each class K (of a binary task 1 alone): 65535 is 1."""
    values = (probabilities_at(logits, size) * 65535).round().numpy().astype(np.uint16)
    for number, one in enumerate(values, start=int(len(values) == 1)):
        Image.fromarray(one).save(target.with_name(f"{target.stem}.probability-{number}.png"))


class Counts:
    """A CSV table of the pixels of each class, and their shares, a line for each mask."""

    def __init__(self, file: TextIO, classes: Sequence[str]) -> None:
        self._table, self._num_classes = csv.writer(file), len(classes)
        shares = [f"{name} share" for name in classes]
        self._table.writerow(["file", "frame", "s", "height", "width", *classes, *shares])

    def add(self, name: str, mask: Mask, frame: int | None = None, s: float | None = None) -> None:
        """Count a mask; of a video with the frame's number and time."""
        counts = np.bincount(mask.ravel(), minlength=self._num_classes).tolist()
        time = "" if s is None else f"{s:.3f}"
        shares = [f"{n / mask.size:.6f}" for n in counts]
        self._table.writerow([name, frame, time, *mask.shape, *counts, *shares])
