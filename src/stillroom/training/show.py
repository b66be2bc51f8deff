"""A grid of validation pictures: picture, truth, teacher, student, and a legend."""

from pathlib import Path

import numpy as np
import torch

from stillroom.metrics import predict
from stillroom.pictures.draw import blend, cut_out, grid, legend_of
from stillroom.training.batches import to_batch
from stillroom.training.context import TrainContext
from stillroom.training.stream import RowDataset, collate
from stillroom.types import IGNORE, Batch

_PICTURES = 4


def teacher_target(batch: Batch, classes: int) -> str | None:
    """Return the name of the first target that is a map of the student's classes on the labels'
    grid.
    """
    for name, target in batch.targets.items():
        if target.shape[1] == classes and target.shape[2:] == batch.mask.shape[1:]:
            return name
    return None


@torch.no_grad()
def draw_grid(context: TrainContext, dataset: RowDataset, path: Path) -> None:
    """Write a PNG of a few validation pictures as the bare student sees them now; leaves it in
    evaluation mode.
    """
    rows = range(0, len(dataset), max(1, len(dataset) // _PICTURES))[:_PICTURES]
    host = collate([dataset.read(row) for row in rows], pin=False)
    batch = to_batch(host, context.accelerator.device, context.cache)
    context.distiller.eval()
    with context.accelerator.autocast():
        logits = context.distiller(batch.image, batch.boxes)["logits"]
    masks = {"truth": host.mask.numpy(), "student": predict(logits).cpu().numpy()}
    target = teacher_target(batch, context.recipe.student.classes)
    if target is not None:
        masks["teacher"] = predict(batch.targets[target]).cpu().numpy()
    if (masks["truth"] == IGNORE).all():
        del masks["truth"]
    names = [name for name in ("truth", "teacher", "student") if name in masks]
    palette = context.recipe.palette_of(context.pictures)
    images = host.image.numpy()
    if host.boxes is not None:
        size = (host.mask.shape[1], host.mask.shape[2])
        pairs = zip(images, host.boxes.tolist(), strict=True)
        images = np.stack([cut_out(image, box, size) for image, box in pairs])
    tiles = [
        [image, *(blend(image, masks[name][i].astype(np.int64), palette) for name in names)]
        for i, image in enumerate(images)
    ]
    legend = legend_of(context.recipe.classes_of(context.pictures), palette)
    grid(tiles, ["picture", *names], legend=legend).save(path)
