"""Metrics against torchmetrics and numbers worked by hand."""

import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from stillroom.metrics import confusion, iou, miou, num_classes, predict


def _labels(classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, classes, (3, 16, 20), generator=generator)
    mask = torch.randint(0, classes, (3, 16, 20), generator=generator)
    mask[:, :4] = 255
    return prediction, mask


def test_confusion_is_that_of_torchmetrics_without_void():
    prediction, mask = _labels(5, 0)
    reference = MulticlassConfusionMatrix(5, ignore_index=255)(prediction, mask)
    assert torch.equal(confusion(prediction, mask, 5), reference)


@pytest.mark.parametrize("classes", [2, 5])
def test_miou_is_that_of_torchmetrics(classes: int):
    prediction, mask = _labels(classes, 1)
    reference = MulticlassJaccardIndex(classes, ignore_index=255)(prediction, mask)
    assert miou(confusion(prediction, mask, classes)) == pytest.approx(reference.item(), abs=1e-6)


def test_a_hand_worked_two_by_two():
    prediction = torch.tensor([[[0, 1], [1, 0]]])
    mask = torch.tensor([[[0, 1], [0, 255]]])
    counts = confusion(prediction, mask, 2)
    assert counts.tolist() == [[1, 1], [0, 1]]
    assert iou(counts).tolist() == [0.5, 0.5]


def test_a_class_in_neither_is_nan_and_not_in_the_mean():
    prediction = torch.tensor([[[0, 0], [1, 1]]])
    mask = torch.tensor([[[0, 0], [1, 0]]])
    counts = confusion(prediction, mask, 3)
    assert iou(counts)[2].isnan()
    assert miou(counts) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_class_that_is_only_predicted_counts_as_zero():
    counts = confusion(torch.tensor([[[0, 2]]]), torch.tensor([[[0, 0]]]), 3)
    assert iou(counts)[2] == 0


def test_padding_is_left_out_where_it_is_given_and_void_still_is():
    inside = torch.tensor([[[True, False, True]]])
    prediction, mask = torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 255]]])
    assert confusion(prediction, mask, 2, inside).tolist() == [[1, 0], [0, 0]]


def test_counts_of_two_parts_add_up_to_the_whole():
    prediction, mask = _labels(4, 2)
    parts = [confusion(prediction[i : i + 1], mask[i : i + 1], 4) for i in range(3)]
    assert torch.equal(torch.stack(parts).sum(0), confusion(prediction, mask, 4))


def test_void_alone_gives_nan():
    counts = confusion(torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), 255), 2)
    assert miou(counts).isnan()


def test_a_label_outside_the_classes_is_an_error():
    with pytest.raises(ValueError, match="outside the 3 classes"):
        confusion(torch.zeros(1, 1, 1).long(), torch.full((1, 1, 1), 3), 3)


def test_one_channel_predicts_foreground_above_zero():
    logits = torch.tensor([[[[-1.0, 0.0, 1e-3]]]])
    assert predict(logits).tolist() == [[[0, 0, 1]]]
    assert num_classes(1) == 2


def test_several_channels_predict_the_largest():
    logits = torch.tensor([[[[0.0]], [[2.0]], [[1.0]]]])
    assert predict(logits).tolist() == [[[1]]]
    assert num_classes(3) == 3
