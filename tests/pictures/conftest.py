"""Tiny sources: coloured noise with masks, in folders, and what a command says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@dataclass(frozen=True)
class Folders:
    """A source `folders:IMAGES,MASKS` that can be spoilt file by file."""

    images: Path
    masks: Path

    @property
    def text(self) -> str:
        return f"folders:{self.images},{self.masks}"

    def add(self, name: str, number: int = 0, size: tuple[int, int] = (24, 32)) -> None:
        """Write a JPEG and a mask of `size` (height, width) with classes 0, 1, 2 and ignore."""
        random = np.random.default_rng(number)
        picture, mask = self.images / f"{name}.jpg", self.masks / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(picture)
        values = random.choice(np.array([0, 1, 2, 255], np.uint8), size)
        Image.fromarray(values).save(mask)


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[int], Folders]:
    """Return a maker of a source with so many pictures, `p00` first."""

    def make(num_pictures: int = 6) -> Folders:
        source = Folders(tmp_path / "images", tmp_path / "masks")
        for number in range(num_pictures):
            source.add(f"p{number:02d}", number)
        return source

    return make


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A VOC folder with palette masks: four pictures to train, two to validate."""
    root = tmp_path / "voc"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    names = [f"2007_{number:06d}" for number in range(6)]
    for number, name in enumerate(names):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(random.choice(np.array([0, 5, 20, 255], np.uint8), (20, 30)))
        mask.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
        assert mask.mode == "P"
        mask.save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("\n".join(names[:4]) + "\n")
    (lists / "val.txt").write_text("\n".join(names[4:]) + "\n")
    return root
