"""Evaluation of a student alone, from the run's files: data-set mIoU, figures per class, confusion
matrix, calibration, agreement with the teacher, size and time.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from stillroom.errors import UserError
from stillroom.jsonfile import write_json
from stillroom.metrics import (
    by_class,
    confusion,
    iou,
    miou,
    num_classes,
    precision,
    predict,
    recall,
)
from stillroom.pictures.dataset import Picture, PictureSet, open_pictures
from stillroom.pictures.loader import (
    box_tensor,
    image_tensor,
    inside_array,
    mask_array,
    read_ahead,
)
from stillroom.remote.mirror import place_of
from stillroom.types import IGNORE
from stillroom.using.cached_masks import CachedMasks
from stillroom.using.measures import Measures
from stillroom.using.student import Trained, flops, milliseconds
from stillroom.using.student_rows import class_names, places, read


def open_data(trained: Trained, shards: Path | None) -> PictureSet:
    """Open the pictures that a run was trained on, or others of the same classes and one size.

    A student that was trained without labels knows no names: any pictures may score it.
    """
    if trained.run.is_file():
        raise UserError(f"{trained.run} is an export", wanted="the run that it is of, runs/NAME")
    pictures = open_pictures(shards or place_of(trained.about["pictures"]["path"]))
    own = trained.about["classes"]
    if trained.regions is None and own and list(pictures.classes) != own:
        raise UserError(
            f"{pictures.path} has other classes than the student",
            found=", ".join(pictures.classes),
            wanted=", ".join(own),
        )
    if pictures.geometry is None:
        raise UserError(
            f"the pictures of {pictures.path} were not packed at one size, which it needs",
            fix="pack them with stillroom shards ... --size H W",
        )
    return pictures


@torch.inference_mode()
def confusion_of(
    trained: Trained,
    pictures: PictureSet,
    split: str,
    device: str = "cpu",
    workers: int = 2,
    measures: Measures | None = None,
) -> Int[Tensor, "k k"]:
    """Return the confusion matrix (truth by prediction, pixels, void left out) of a whole split at
    the size that the student was trained at; of pictures without classes it is empty. `measures`
    is shown every batch.

    Raises UserError where the split has no labelled picture, or another number of classes than the
    student.
    """
    if not pictures.shard_ids(split):
        splits = dict.fromkeys(shard.split for shard in pictures.shards)
        raise UserError(
            f"{pictures.path} has no split {split!r}", wanted=", ".join(splits), fix="--split NAME"
        )
    network = trained.network.to(device)
    classes = class_names(trained, pictures)
    k = len(classes)
    table = torch.zeros(k, k, dtype=torch.int64)
    for names, batch in _batches(trained, pictures, split, workers):
        image = torch.stack([image_tensor(picture.image) for picture in batch]).to(device)
        mask = torch.from_numpy(np.stack([_labels(picture) for picture in batch])).long()
        boxes = box_tensor(batch)
        logits = network(image, None if boxes is None else boxes.to(device)).cpu()
        if k and num_classes(logits.shape[1]) != k:
            raise UserError(
                f"{pictures.path} has another number of classes than the student",
                found=", ".join(classes),
                wanted=f"{num_classes(logits.shape[1])} classes",
            )
        table += confusion(predict(logits), mask, k)
        if measures is not None:
            measures.add(names, batch, logits, mask)
    if k and not table.sum():
        raise UserError(f"split {split!r} of {pictures.path} has no labelled picture")
    return table


def evaluate(
    trained: Trained,
    pictures: PictureSet,
    split: str = "val",
    device: str = "cpu",
    teacher: CachedMasks | None = None,
) -> dict[str, Any]:
    """Evaluate, and write `evaluation.json` into the run's folder, and, where the pictures have
    labels, `confusion.csv` and `confusion.png`.
    """
    measures = Measures(trained.num_classes, teacher)
    found = {"split": split, "pictures": pictures.digest}
    table = confusion_of(trained, pictures, split, device, measures=measures)
    if classes := class_names(trained, pictures):
        found |= scores(table, classes)
        if trained.regions is not None:
            found |= _target_scores(table)
        _write_confusion(table, classes, trained.run)
    found |= measures.figures(classes)
    found |= {
        "weights_sha256": trained.about["weights_sha256"],
        "weights_bytes": trained.weights_bytes,
        "parameters": trained.num_parameters,
        "flops": flops(trained),
        "ms": milliseconds(trained),
    }
    write_evaluation(trained.run, found)
    return found


def write_evaluation(run: Path, found: dict[str, Any]) -> None:
    """Write `evaluation.json` into a run's folder."""
    write_json(run / "evaluation.json", found)


def scores(table: Int[Tensor, "k k"], classes: list[str]) -> dict[str, Any]:
    """Return what a confusion matrix says, each class by its name; None for what is undefined."""
    return {
        "miou": float(miou(table)),
        "iou": by_class(classes, iou(table)),
        "precision": by_class(classes, precision(table)),
        "recall": by_class(classes, recall(table)),
        "pixel_accuracy": float(table.diagonal().sum() / table.sum()),
        "confusion": table.tolist(),
    }


def _target_scores(table: Int[Tensor, "3 3"]) -> dict[str, Any]:
    """Return the F1 of the target, how often it and others are told apart where the truth has
    either, and the 2 x 2 tables (truth by prediction, the target first) that both come from.
    """
    hits, column, row = (int(x) for x in (table[1, 1], table[:, 1].sum(), table[1].sum()))
    away = int(table.sum()) - column - row + hits
    others = int(table[2].sum()) - int(table[2, 1])
    apart = [[hits, row - hits], [int(table[2, 1]), others]]
    return {
        "target_f1": 2 * hits / max(1, column + row),
        "separation_accuracy": (hits + others) / max(1, sum(map(sum, apart))),
        "target_or_rest": [[hits, row - hits], [column - hits, away]],
        "target_or_other": apart,
    }


def _write_confusion(table: Int[Tensor, "k k"], classes: list[str], run: Path) -> None:
    with (run / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["truth \\ prediction", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, table.tolist(), strict=True))
    draw_confusion(table, classes, run / "confusion.png")


def draw_confusion(table: Int[Tensor, "k k"], classes: list[str], path: Path) -> None:
    """Draw a confusion matrix as shares of each true class."""
    from matplotlib.figure import Figure

    shares = (table.double() / table.sum(1, keepdim=True).clamp_min(1)).numpy()
    side = 2.5 + 0.55 * len(classes)
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            colour = "white" if share > 0.5 else "black"
            axes.text(x, y, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=8)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right")
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="prediction", ylabel="truth", title="share of the true class's pixels")
    figure.savefig(path, dpi=110)


def _batches(
    trained: Trained, pictures: PictureSet, split: str, workers: int
) -> Iterator[tuple[list[str], list[Picture]]]:
    """Yield names and pictures of rows in order, across shards, as validation does."""
    num_pictures, known = trained.about["batch"], places(trained, pictures, split)

    def read_some(start: int) -> tuple[list[str], list[Picture]]:
        some = known[start : start + num_pictures]
        return [row.name for _, row in some], [read(trained, pictures, place) for place in some]

    starts = range(0, len(known), num_pictures)
    return read_ahead(starts, read_some, workers, depth=workers + 1)


def _labels(picture: Picture) -> np.ndarray:
    return np.where(inside_array(picture), mask_array(picture), IGNORE)
