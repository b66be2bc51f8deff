"""Metrics against torchmetrics and numbers worked by hand."""

import pytest
import torch
from torch.nn.functional import max_pool2d, pad
from torchmetrics.classification import (
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)

from stillroom.metrics import (
    boundary,
    boundary_counts,
    boundary_width,
    calibration,
    calibration_error,
    confusion,
    iou,
    miou,
    num_classes,
    precision,
    predict,
    recall,
)


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


def test_precision_and_recall_are_those_of_torchmetrics():
    prediction, mask = _labels(4, 3)
    counts, about = confusion(prediction, mask, 4), {"average": "none", "ignore_index": 255}
    wanted = MulticlassPrecision(4, **about)(prediction, mask)
    assert torch.allclose(precision(counts).float(), wanted, atol=1e-6)
    wanted = MulticlassRecall(4, **about)(prediction, mask)
    assert torch.allclose(recall(counts).float(), wanted, atol=1e-6)


@pytest.mark.parametrize("width", [1, 3, 9])
def test_a_boundary_is_what_repeated_erosion_takes_away(width):
    masks = torch.rand(3, 14, 17, generator=torch.Generator().manual_seed(4)) < 0.97
    masks[1, 2:12, 3:15] = True
    eroded = masks.float()
    for _ in range(width):  # 3 x 3, nothing but background outside the picture
        eroded = -max_pool2d(pad(-eroded, (1,) * 4), 3, stride=1)
    assert torch.equal(boundary(masks, width), masks & ~eroded.bool())


def test_boundaries_of_a_square_that_is_one_pixel_off_are_counted_by_hand():
    mask, prediction = torch.zeros(2, 12, 12).long()
    mask[4:8, 4:8], prediction[4:8, 5:9] = 1, 1
    assert boundary_width(12, 12) == 1
    counts = boundary_counts(prediction, mask, 2)
    assert counts[:, 1].tolist() == [6, 18]  # rings of 12: 2 * 3 of the top and bottom rows meet


def test_a_boundary_that_is_right_wherever_labels_are_is_perfect():
    mask = torch.zeros(20, 20).long()
    mask[5:15, 5:15] = 1
    mask[4:16, 14:17] = 255
    prediction = torch.where(mask == 255, 1, mask)
    shared, either = boundary_counts(prediction, mask, 3)
    assert torch.equal(shared, either) and shared[:2].min() > 0 and shared[2] == 0


@pytest.mark.parametrize("classes", [1, 4])
def test_calibration_error_is_that_of_torchmetrics(classes):
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(2, classes, 16, 20, generator=generator)
    _, mask = _labels(max(2, classes), 6)
    two = torch.cat([torch.zeros_like(logits), logits], 1) if classes == 1 else logits
    wanted = MulticlassCalibrationError(max(2, classes), 15, ignore_index=255)(two, mask[:2])
    parts = sum(calibration(logits[i : i + 1], mask[i : i + 1], 15) for i in range(2))
    assert calibration_error(parts) == pytest.approx(wanted.item(), abs=1e-6)
    assert parts[0].sum() == (mask[:2] != 255).sum()


def test_certainty_itself_is_in_the_last_bin():
    table = calibration(torch.full((1, 1, 2, 2), 100.0), torch.ones(1, 2, 2).long(), 10)
    assert table[:, 9].tolist() == [4, 4, 4] and calibration_error(table) == 0
