"""Validation counts pixels of a whole split: void and padding never, batches however they fall."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.losses import CrossEntropy, Dice, LogitMSE
from stillroom.training.evaluations import selection_score
from stillroom.training.show import teacher_target
from stillroom.training.validate import figures, summary, validate
from stillroom.types import Batch

TERMS = (CrossEntropy(), Dice(), LogitMSE(target="said"))


class Said(nn.Module):
    """A student whose logits are written in the picture, so that a test knows them."""

    def forward(self, image, boxes=None):
        return {"logits": image * 10 - 5}


def split(count: int = 6) -> Batch:
    draw = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 3, (count, 8, 8), generator=draw)
    mask[torch.rand(count, 8, 8, generator=draw) < 0.3] = 255
    inside = torch.ones(count, 8, 8, dtype=torch.bool)
    inside[:, :2] = False
    return Batch(
        keys=tuple(map(str, range(count))),
        image=torch.rand(count, 3, 8, 8, generator=draw),
        mask=mask,
        inside=inside,
        targets={"said": torch.randn(count, 3, 8, 8, generator=draw)},
    )


def cut(batch: Batch, sizes: list[int]) -> list[Batch]:
    tensors = [t.split(sizes) for t in (batch.image, batch.mask, batch.inside)]
    said = batch.targets["said"].split(sizes)
    return [
        Batch(keys=("k",) * len(i), image=i, mask=m, inside=n, targets={"said": s})
        for i, m, n, s in zip(*tensors, said, strict=True)
    ]


def run(batches, classes=3, reduce=lambda t: t):
    return validate(
        Said(),
        TERMS,
        batches,
        classes,
        device=torch.device("cpu"),
        reduce=reduce,
        autocast=nullcontext,
    )


def numpy_iou(truth, prediction, classes=3):
    hits = [np.sum((truth == c) & (prediction == c)) for c in range(classes)]
    seen = [np.sum((truth == c) | (prediction == c)) for c in range(classes)]
    return [h / s for h, s in zip(hits, seen, strict=True)]


def test_figures_are_those_of_numpy_over_the_labelled_pixels():
    batch = split()
    found = run([batch])
    counted = ((batch.mask != 255) & batch.inside).numpy()
    truth = batch.mask.numpy()[counted]
    student = batch.image.argmax(1).numpy()[counted]
    teacher = batch.targets["said"].argmax(1).numpy()
    assert found["iou"] == pytest.approx(numpy_iou(truth, student))
    assert found["miou"] == pytest.approx(np.mean(numpy_iou(truth, student)))
    assert found["teacher_iou"] == pytest.approx(numpy_iou(truth, teacher[counted]))
    inside = batch.inside.numpy()  # the two are compared on unlabelled pixels too
    same = (teacher == batch.image.argmax(1).numpy())[inside]
    assert found["agreement"] == pytest.approx(same.mean())


def test_batches_of_any_sizes_and_ranks_give_the_same_figures():
    whole, parts = run([split()]), run(cut(split(), [1, 3, 2]))
    shares = [cut(split(), [1, 3, 2])[rank::2] for rank in (0, 1)]
    sums = []
    run(shares[0], reduce=lambda t: sums.append(t.clone()) or t)

    def reduce(tensor):
        tensor += sums.pop(0)  # what the other rank has
        return tensor

    process = run(shares[1], reduce=reduce)
    for other in (parts, process):
        assert other["iou"] == whole["iou"]
        assert other["agreement"] == whole["agreement"]
        assert other["terms"] == pytest.approx(whole["terms"], rel=1e-6)


def test_a_term_is_its_mean_over_the_split():
    batch = split()
    valid = (batch.mask != 255) & batch.inside
    logits = batch.image * 10 - 5
    wanted = nn.functional.cross_entropy(logits.permute(0, 2, 3, 1)[valid], batch.mask[valid])
    assert run(cut(batch, [2, 4]))["terms"][0] == pytest.approx(float(wanted), rel=1e-5)


def test_void_and_padding_are_never_counted():
    one, two = split(), split()
    counted = (two.mask != 255) & two.inside
    two.image[~counted[:, None].expand_as(two.image)] = 0.123
    two.mask[~two.inside] = 1
    assert run([one])["miou"] == run([two])["miou"]


def test_a_class_that_is_nowhere_has_no_iou_and_no_part_in_the_mean():
    tables = torch.zeros(3, 3, 3, dtype=torch.int64)
    tables[0] = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    found = figures(tables)
    assert found == {"miou": pytest.approx((6 / 9 + 3 / 6) / 2), "iou": [6 / 9, 3 / 6, None]}


def test_a_split_without_labels_has_agreement_and_no_miou():
    batch = split()
    batch.mask.fill_(255)
    found = run([batch])
    assert found.keys() == {"agreement", "terms"}
    assert selection_score(found) == found["agreement"]


def test_the_score_is_miou_then_agreement_then_nothing():
    assert selection_score({"miou": 0.4, "agreement": 0.9}) == 0.4
    assert selection_score({"miou": 0.0, "agreement": 0.9}) == 0.0
    assert selection_score({"miou": None, "agreement": 0.9}) == 0.9
    assert selection_score({"miou": None, "agreement": None}) is selection_score({}) is None


def test_of_a_binary_task_the_foreground_is_summed_up_too():
    names = ("ground", "person")
    assert summary({"miou": 1.0, "iou": [1.0, None]}, names) == "mIoU 1.0000"
    found = {"miou": 0.75, "iou": [1.0, 0.5], "teacher_iou": [1.0, 0.25]}
    assert summary(found, names).endswith("person IoU 0.5000, teacher person IoU 0.2500")
    assert "person" not in summary(found, (*names, "bird"))


def test_the_teacher_is_compared_where_it_speaks_of_the_same_classes_and_pixels():
    batch = split()
    features, other = torch.zeros(6, 3, 4, 4), torch.zeros(6, 5, 8, 8)
    batch.targets = {"features": features, "other": other, "said": batch.targets["said"]}
    assert teacher_target(batch, 3) == "said"
    assert teacher_target(batch, 1) is None
