"""Evaluation of a student alone, from the run's files: data-set mIoU, IoU per class, confusion
matrix, size and time.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillroom.errors import UserError
from stillroom.jsonfile import write_json
from stillroom.metrics import (
    confusion,
    iou,
    miou,
    num_classes,
    predict,
    region_figures,
    region_sums,
)
from stillroom.pictures.dataset import Picture, PictureSet, open_pictures
from stillroom.pictures.loader import (
    box_tensor,
    image_tensor,
    inside_array,
    mask_array,
    read_ahead,
)
from stillroom.pictures.regions import REGION_CLASSES
from stillroom.pictures.rows import picture_of, rows_of
from stillroom.pictures.views import Views
from stillroom.types import IGNORE
from stillroom.using.student import Trained, milliseconds


def open_data(trained: Trained, shards: Path | None) -> PictureSet:
    """Open the pictures that a run was trained on, or others of the same classes and one size.

    A student that was trained without labels knows no names: any pictures may score it.
    """
    pictures = open_pictures(Path(trained.about["pictures"]["path"]) if shards is None else shards)
    own = trained.about["classes"]
    if trained.regions is None and own and list(pictures.classes) != own:
        raise UserError(
            f"{pictures.path} has other classes than the student",
            found=", ".join(pictures.classes),
            wanted=", ".join(own),
        )
    if pictures.geometry is None:
        raise UserError(
            f"the pictures of {pictures.path} have different sizes, so they cannot be batched",
            fix="pack them with tools/make_shards.py ... --size H W",
        )
    return pictures


@torch.inference_mode()
def confusion_of(
    trained: Trained, pictures: PictureSet, split: str, device: str = "cpu", workers: int = 2
) -> tuple[Int[Tensor, "k k"], Float[Tensor, "4"]]:
    """Return the confusion matrix (truth by prediction, pixels, void left out) of a whole split at
    the size that the student was trained at, and of regions the sums of `region_sums`.

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
    regions = torch.zeros(4, dtype=torch.float64)
    for batch in _batches(trained, pictures, split, workers):
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
        if boxes is not None:
            regions += region_sums(predict(logits), mask, mask != IGNORE)
    if not table.sum():
        raise UserError(f"split {split!r} of {pictures.path} has no labelled picture")
    return table, regions


def class_names(trained: Trained, pictures: PictureSet) -> list[str]:
    """Return the names of the classes that labels tell apart; none where there are no labels."""
    is_region = trained.regions is not None and pictures.classes
    return list(REGION_CLASSES if is_region else pictures.classes)


def evaluate(
    trained: Trained, pictures: PictureSet, split: str = "val", device: str = "cpu"
) -> dict[str, Any]:
    """Evaluate, and write `evaluation.json` into the run's folder, and, where the pictures have
    labels, `confusion.csv` and `confusion.png`.
    """
    found = {"split": split, "pictures": pictures.digest}
    if classes := class_names(trained, pictures):
        table, regions = confusion_of(trained, pictures, split, device)
        found |= region_figures(regions) | _scores(table, classes)
        if trained.regions is not None:
            found |= _target_scores(table)
        _write_confusion(table, classes, trained.run)
    found |= {
        "weights_sha256": trained.about["weights_sha256"],
        "parameters": trained.num_parameters,
        "ms": milliseconds(trained),
    }
    write_json(trained.run / "evaluation.json", found)
    return found


def _scores(table: Int[Tensor, "k k"], classes: list[str]) -> dict[str, Any]:
    return {
        "miou": float(miou(table)),
        "iou": {name: _number(value) for name, value in zip(classes, iou(table), strict=True)},
        "pixel_accuracy": float(table.diagonal().sum() / table.sum()),
        "confusion": table.tolist(),
    }


def _target_scores(table: Int[Tensor, "3 3"]) -> dict[str, Any]:
    """Return precision, recall and F1 of the target, and, where there is foreground in the truth,
    how often target and other are told apart, with the 2 x 2 tables (truth by prediction, the
    target first) that they come from.
    """
    order = [1, 0, 2]
    rest = table[order][:, order].double()
    rest = torch.stack([rest[:1].sum(0), rest[1:].sum(0)])
    rest = torch.stack([rest[:, 0], rest[:, 1:].sum(1)], 1)
    apart = torch.stack([table[1:, 1], table[1:, [0, 2]].sum(1)], 1).double()
    hits, missed, wrong = rest[0, 0], rest[0, 1], rest[1, 0]
    return {
        "target_precision": _number(hits / (hits + wrong)),
        "target_recall": _number(hits / (hits + missed)),
        "target_f1": _number(2 * hits / (2 * hits + missed + wrong)),
        "separation_accuracy": _number(apart.diagonal().sum() / apart.sum()),
        "target_or_rest": rest.long().tolist(),
        "target_or_other": apart.long().tolist(),
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


def _batches(trained: Trained, pictures: PictureSet, split: str, workers: int):
    """Yield lists of rows' pictures in order, across shards, as validation does."""
    num_pictures, regions = trained.about["batch"], trained.regions
    places = [
        (shard, row)
        for shard in pictures.shard_ids(split)
        for row in rows_of(pictures.open(shard), Views(), regions=regions is not None)
    ]

    def read(start: int) -> list[Picture]:
        found = []
        for shard, row in places[start : start + num_pictures]:
            picture = pictures.open(shard).read(pictures.open(shard).index(row.key))
            found.append(picture_of(picture, row, trained.size, regions))
        return found

    return read_ahead(range(0, len(places), num_pictures), read, workers, depth=workers + 1)


def _labels(picture: Picture) -> np.ndarray:
    return np.where(inside_array(picture), mask_array(picture), IGNORE)


def _number(value: Tensor) -> float | None:
    return None if bool(torch.isnan(value)) else float(value)
