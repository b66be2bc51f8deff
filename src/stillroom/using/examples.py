"""Pictures as a student sees them, beside truth and teacher: those to look at, and one PNG of the
best, the middle and the worst.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from stillroom.metrics import predict
from stillroom.pictures.dataset import PictureSet
from stillroom.pictures.draw import (
    WRONG_COLOUR,
    blend,
    colour_mask,
    grid,
    legend_of,
    mistakes,
)
from stillroom.pictures.loader import box_tensor, image_tensor, inside_array
from stillroom.types import IGNORE
from stillroom.using.cached_masks import CachedMasks
from stillroom.using.student import Trained
from stillroom.using.student_rows import class_names, palette_for, places, read, tile

Score = tuple[str, float]  # a picture's key, and its mIoU
_EACH = 2  # pictures of the best, the middle and the worst
_DRAWN = 6  # pictures of students side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A picture and its masks by name: truth and teacher where they are known, then students."""

    key: str
    score: float  # mIoU
    image: UInt8[np.ndarray, "h w 3"]
    masks: dict[str, UInt8[np.ndarray, "h w"]]

    @property
    def reference(self) -> UInt8[np.ndarray, "h w"] | None:
        """What a student is compared with: the truth, else the teacher."""
        return self.masks.get("truth", self.masks.get("teacher"))


def legend_for(
    classes: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> list[tuple[str, tuple[int, int, int]]]:
    """Return each colour's name, void and what is wrong among them."""
    return [*legend_of(classes, palette), ("differs", WRONG_COLOUR)]


def choose(scores: Sequence[Score], worst: int, most: int) -> list[Score]:
    """Return the worst pictures, worst first, then others spread over the split, at most `most` in
    all.
    """
    ranked = sorted(scores, key=lambda score: score[1])
    first, rest = ranked[:worst], set(ranked[worst:])
    others = [score for score in scores if score in rest]
    count = min(most - len(first), len(others))
    return first + [others[i * len(others) // count] for i in range(count)]


@torch.inference_mode()
def examples(
    students: Mapping[str, Trained],
    pictures: PictureSet,
    split: str,
    scores: Sequence[Score],
    teacher: CachedMasks | None = None,
) -> Iterator[Example]:
    """Yield these pictures at the first student's size, one at a time."""
    first = next(iter(students.values()))
    known = {place[1].name: place for place in places(first, pictures, split)}
    for name, score in scores:
        picture = read(first, pictures, known[name])
        image, boxes = image_tensor(picture.image)[None], box_tensor([picture])
        masks = {}
        if picture.mask is not None:
            masks["truth"] = np.where(inside_array(picture), picture.mask, np.uint8(IGNORE))
        if teacher is not None:
            masks["teacher"] = teacher.mask(name).numpy().astype(np.uint8)
        for label, trained in students.items():
            logits = trained.network.cpu()(image, boxes)
            masks[label] = predict(logits)[0].numpy().astype(np.uint8)
        yield Example(key=name, score=score, image=tile(first, picture), masks=masks)


def draw_examples(
    trained: Trained,
    pictures: PictureSet,
    split: str,
    scores: Sequence[Score],
    path: Path,
    teacher: CachedMasks | None = None,
) -> None:
    """Write one PNG: picture, truth, teacher, student and what differs, of the best, the middle and
    the worst pictures.
    """
    ranked = sorted(scores, key=lambda score: -score[1])
    middle = max(0, len(ranked) // 2 - _EACH // 2)
    groups = {
        "best": ranked[:_EACH],
        "median": ranked[middle : middle + _EACH],
        "worst": ranked[-_EACH:],
    }
    chosen = [(name, score) for name, some in groups.items() for score in some]
    rows, captions, titles = [], [], []
    palette = palette_for(trained, pictures)
    shown = examples({"student": trained}, pictures, split, [s for _, s in chosen], teacher)
    for (name, _), example in zip(chosen, shown, strict=True):
        assert example.reference is not None, "a score needs something to compare with"
        wrong = mistakes(example.image, example.masks["student"], example.reference)
        blends = [blend(example.image, m.astype(int), palette) for m in example.masks.values()]
        rows.append([example.image, *blends, wrong])
        captions.append(f"{name}: mIoU {example.score:.3f}, {example.key}")
        titles = ["picture", *example.masks, "difference"]
    grid(rows, titles, captions, legend_for(class_names(trained, pictures), palette)).save(path)


def draw_masks(students: Mapping[str, Trained], pictures: PictureSet, path: Path) -> None:
    """Write a grid of validation pictures, or regions of them, at the first student's size:
    picture, truth, each student's mask.
    """
    first = next(iter(students.values()))
    names = [row.name for _, row in places(first, pictures, "val")]
    chosen = [(name, 0.0) for name in names[:: max(1, len(names) // _DRAWN)][:_DRAWN]]
    palette, rows, titles = palette_for(first, pictures), [], []
    for one in examples(students, pictures, "val", chosen):
        rows.append([one.image, *(colour_mask(mask, palette) for mask in one.masks.values())])
        titles = ["picture", *one.masks]
    grid(rows, titles, legend=legend_of(class_names(first, pictures), palette)).save(path)
