"""Two splits of pictures in memory, a small U-Net as their teacher, and a plain training loop."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.losses import CrossEntropy, Dice, Term
from stillroom.metrics import confusion, iou, miou, predict
from stillroom.pictures.dataset import Picture, open_pictures
from stillroom.pictures.rows import places_of, read_place
from stillroom.pictures.synthetic import CLASSES, draw_shapes
from stillroom.students.definitions import UNetStudent
from stillroom.students.distiller import Distiller, build_distiller
from stillroom.types import IGNORE, Batch, TargetSpec

BATCH, TAP = 8, "encoder.2"  # of the teacher and of the student, stride 4
_TEACHER_WIDTH, _STUDENT_WIDTH, _DEPTH, _VAL_SEED = 16, 8, 3, 100_000

Outputs = dict[str, Tensor]
Loss = Callable[[Outputs, Batch], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Both splits whole; their targets are `logits` and `feature`, once a teacher has said them."""

    classes: tuple[str, ...]
    train: Batch
    val: Batch

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.train.image.shape[2], self.train.image.shape[3]

    def batches(self, steps: int, seed: int = 0) -> Iterator[Batch]:
        """Yield random training batches, the same ones for the same seed."""
        draw = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            yield part(self.train, torch.randperm(len(self.train.keys), generator=draw)[:BATCH])


def shapes(num_train: int, num_val: int, edge: int) -> World:
    """Return made-up pictures of four classes."""
    first = {"train": range(num_train), "val": range(_VAL_SEED, _VAL_SEED + num_val)}
    drawn = {split: [draw_shapes(seed, edge) for seed in seeds] for split, seeds in first.items()}
    return World(classes=CLASSES, **{split: _stacked(pairs) for split, pairs in drawn.items()})


def packed(path: Path, num_train: int, num_val: int, size: tuple[int, int]) -> World:
    """Return the first pictures of labelled shards, at `size` (h, w)."""
    pictures = open_pictures(path)

    def first(split: str, count: int) -> Batch:
        places = itertools.islice(places_of(pictures, split, regions=False), count)
        return _stacked([_labelled(read_place(pictures, place, size)) for place in places])

    return World(
        classes=tuple(pictures.classes), train=first("train", num_train), val=first("val", num_val)
    )


def taught(world: World, steps: int) -> World:
    """Train a teacher on the labels and return the world with what it says of every picture."""
    terms = (CrossEntropy(weight=1.0), Dice(weight=1.0))
    teacher = _built(world, _TEACHER_WIDTH, terms, {})
    fit(teacher, teacher.parameters(), labels_loss(terms), world.batches(steps, seed=1))
    return replace(world, train=_said(teacher, world.train), val=_said(teacher, world.val))


def new_student(world: World, terms: Sequence[Term]) -> Distiller:
    """Return a student with its projections, always with the same first weights."""
    specs = {
        name: TargetSpec(
            name=name,
            shape=(int(value.shape[1]), int(value.shape[2]), int(value.shape[3])),
            stride=world.size[0] // value.shape[2],
            kind="logits" if name == "logits" else "features",
        )
        for name, value in world.train.targets.items()
    }
    return _built(world, _STUDENT_WIDTH, tuple(terms), specs)


def fit(
    model: Distiller,
    parameters: Iterator[nn.Parameter],
    loss: Loss,
    batches: Iterator[Batch],
    *,
    lr: float = 3e-3,
    clip: float | None = None,
    sgd: bool = False,
    frozen: tuple[nn.Module, ...] = (),
) -> list[float]:
    """Train with AdamW, or SGD with momentum; return the loss of every step.

    `frozen` keeps its numbers and stays in evaluation mode.
    """
    trained = list(parameters)
    optimizer = (
        torch.optim.SGD(trained, lr, momentum=0.9) if sgd else torch.optim.AdamW(trained, lr)
    )
    model.train()
    for module in frozen:
        module.eval().requires_grad_(False)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        value = loss(model(batch.image), batch)
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        losses.append(value.item())
    return losses


def labels_loss(terms: Sequence[Term]) -> Loss:
    """Return the weighted sum of terms, each a sum divided by its count, as stillroom trains it."""

    def loss(outputs: Outputs, batch: Batch) -> Tensor:
        parts = [t.weight * t.total(outputs, batch, 1.0) / t.count(batch).float() for t in terms]
        return torch.stack(parts).sum()

    return loss


def gradient(value: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradient with respect to all parameters as one vector."""
    found = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found]).double()


@torch.no_grad()
def score(model: Distiller, world: World) -> dict[str, object]:
    """Return mIoU and the IoU of each class on the validation split."""
    model.eval()
    table = torch.zeros(len(world.classes), len(world.classes), dtype=torch.int64)
    for indices in torch.arange(len(world.val.keys)).split(BATCH):
        batch = part(world.val, indices)
        table += confusion(predict(model(batch.image)["logits"]), batch.mask, len(world.classes))
    ious = dict(zip(world.classes, [round(v, 3) for v in iou(table).tolist()], strict=True))
    return {"miou": round(float(miou(table)), 3), "iou": ious}


def part(batch: Batch, indices: Tensor) -> Batch:
    """Return some pictures of a batch."""
    return Batch(
        keys=tuple(batch.keys[i] for i in indices),
        image=batch.image[indices],
        mask=batch.mask[indices],
        inside=batch.inside[indices],
        targets={name: value[indices] for name, value in batch.targets.items()},
    )


def _built(
    world: World, width: int, terms: tuple[Term, ...], specs: dict[str, TargetSpec]
) -> Distiller:
    torch.manual_seed(0)
    student = UNetStudent(width=width, depth=_DEPTH, classes=len(world.classes))
    return build_distiller(student, terms, specs, world.size)


@torch.no_grad()
def _said(teacher: Distiller, batch: Batch) -> Batch:
    teacher.eval()
    pairs = [teacher.student.forward_taps(i, (TAP,)) for i in batch.image.split(BATCH)]
    logits, features = zip(*pairs, strict=True)
    targets = {"logits": torch.cat(logits), "feature": torch.cat([f[TAP] for f in features])}
    return replace(batch, targets=targets)


def _labelled(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    assert picture.mask is not None, "the pictures have labels"
    mask, (x0, y0, x1, y1) = picture.mask.copy(), picture.inside
    mask[:y0], mask[y1:], mask[:, :x0], mask[:, x1:] = IGNORE, IGNORE, IGNORE, IGNORE
    return picture.image, mask


def _stacked(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    images, masks = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
    return Batch(
        keys=tuple(map(str, range(len(pairs)))),
        image=images.permute(0, 3, 1, 2).float() / 255,
        mask=masks.long(),
        inside=torch.ones(masks.shape, dtype=torch.bool),
    )
