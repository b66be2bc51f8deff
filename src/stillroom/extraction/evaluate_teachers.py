"""The frozen teachers of a recipe on labelled pictures: data-set mIoU, time and parameters."""

import time
from statistics import median
from typing import Any

import torch

from stillroom.metrics import by_class, confusion, iou, miou, num_classes, predict
from stillroom.pictures.dataset import PictureSet
from stillroom.pictures.loader import box_tensor, image_tensor, inside_array, mask_array
from stillroom.pictures.rows import places_of, read_place
from stillroom.recipe import Recipe
from stillroom.teachers.protocol import BuiltTeacher, Counts, TeacherConfig
from stillroom.types import IGNORE

_WARM = 3  # pictures that are not timed


def evaluate_teachers(
    recipe: Recipe, pictures: PictureSet, split: str, size: tuple[int, int], device: str
) -> list[dict[str, Any]]:
    """Return, per target, its teacher's mIoU on a split at `size` (h, w), None for features and
    other classes, and the teacher's milliseconds a picture and parameters.

    One picture is a batch, so that the time is comparable with a student's; one teacher is in
    memory at a time. Raises UserError for a teacher that cannot be built or run.
    """
    found = []
    for config in recipe.teachers:
        found += _evaluate(recipe, config, config.build(device), pictures, split, size)
    return found


def _evaluate(
    recipe: Recipe,
    config: TeacherConfig,
    built: BuiltTeacher,
    pictures: PictureSet,
    split: str,
    size: tuple[int, int],
) -> list[dict[str, Any]]:
    classes, regions = recipe.classes_of(pictures), recipe.data.regions
    k = len(classes)
    tables = {name: torch.zeros(k, k, dtype=torch.int64) for name in config.targets}
    times = []
    for place in places_of(pictures, split, regions=regions is not None):
        picture = read_place(pictures, place, size, regions)
        image = image_tensor(picture.image)[None]
        began = time.perf_counter()
        answers = built(image, rows=(place[1],), boxes=box_tensor([picture]))
        answers = {name: answers[name].cpu() for name in config.targets}
        times.append(time.perf_counter() - began)
        mask = torch.from_numpy(mask_array(picture)).long()
        mask[~torch.from_numpy(inside_array(picture))] = IGNORE
        for name, kind in config.targets.items():
            logits = answers[name]
            is_map = kind == "logits" and logits.shape[2:] == mask.shape
            if is_map and num_classes(logits.shape[1]) == k:
                tables[name] += confusion(predict(logits), mask[None], k)
    shared = {
        "teacher": type(config).__name__,
        "ms": 1000 * median(times[_WARM:] or times),
        "parameters": built.num_parameters if isinstance(built, Counts) else None,
    }
    return [{"target": n, **_scores(t, classes), **shared} for n, t in tables.items()]


def _scores(table: torch.Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    if not table.sum():
        return {"miou": None, "iou": None}
    return {"miou": float(miou(table)), "iou": by_class(classes, iou(table))}
