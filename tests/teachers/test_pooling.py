"""A tap with a stride is the tap, averaged; the stride is part of what a teacher is."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from stillroom.errors import UserError
from stillroom.networks.build import build_network
from stillroom.teachers.configs import OnnxTeacher, RunTeacher
from stillroom.teachers.own_configs import TimmTeacher, TorchTeacher
from stillroom.teachers.pooling import pooled
from stillroom.training.checkpoint import save_student

UNET = {"name": "unet", "width": 4, "depth": 3, "classes": 3} | dict.fromkeys(
    ("mean", "std"), [0.5] * 3
)
IMAGE = torch.rand((2, 3, 32, 64), generator=torch.Generator().manual_seed(1))


def test_an_average_worked_by_hand():
    feature = torch.tensor([[[[1.0, 2.0, 5.0, 5.0], [3.0, 4.0, 5.0, 9.0]]]])
    found = pooled({"a": feature, "b": feature}, {"a": 4}, (4, 8))
    assert found["a"].tolist() == [[[[2.5, 6.0]]]]
    assert found["b"] is feature


@pytest.mark.parametrize("stride", [1, 3, 6, 12, 64])
def test_what_is_no_whole_number_of_cells_is_refused(stride):
    with pytest.raises(UserError, match=r"'a' cannot be averaged(.|\n)*multiple of 2"):
        pooled({"a": torch.rand(1, 2, 8, 12)}, {"a": stride}, (16, 24))


def run_teacher(folder, make_onnx):
    save_student(folder, build_network(UNET), {"network": UNET, "classes": ["a", "b", "c"]})
    return RunTeacher(target="seg", path=str(folder), taps=(("inner", "encoder.1"),))


def torch_teacher(folder, make_onnx):
    code = "from torch import nn\ndef build(): return nn.Sequential(nn.Conv2d(3, 2, 2, stride=2))\n"
    (folder / "mine.py").write_text(code)
    return TorchTeacher(factory=f"{folder}/mine.py:build", target=None, outputs=(("inner", "0"),))


def timm_teacher(folder, make_onnx):
    return TimmTeacher(model="test_resnet", taps=(("inner", 0),))


def onnx_teacher(folder, make_onnx):
    path = make_onnx.save_segmenter(folder / "a.onnx")
    tensors = (("inner", "feature"),)
    return OnnxTeacher(target="seg", path=str(path), kind="logits", tensors=tensors)


@pytest.mark.parametrize("make", [run_teacher, torch_teacher, timm_teacher, onnx_teacher])
def test_a_tap_with_a_stride_is_the_tap_averaged_and_another_target(make, tmp_path, make_onnx):
    plain = make(tmp_path, make_onnx)
    field = {"OnnxTeacher": "tensors", "TorchTeacher": "outputs"}.get(type(plain).__name__, "taps")
    ((name, place),) = getattr(plain, field)
    config = dataclasses.replace(plain, **{field: ((name, place, 16),)})
    wanted, found = plain.build("cpu")(IMAGE), config.build("cpu")(IMAGE)
    cells = wanted["inner"].shape[2] // 2
    torch.testing.assert_close(found["inner"], functional.avg_pool2d(wanted["inner"], cells))
    assert found["inner"].shape[2:] == (2, 4) and found.keys() == wanted.keys()
    assert config.targets == plain.targets
    assert plain.identity()["targets"]["inner"] == place
    assert config.identity()["targets"]["inner"] == {"tensor": place, "stride": 16}


def test_a_stride_is_a_positive_number():
    with pytest.raises(UserError, match="no such stride"):
        RunTeacher(target="seg", path="no", taps=(("inner", "encoder.1", 0),))
