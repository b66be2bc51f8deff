"""Weights that no training leaves behind are named, and nothing else is."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from stillroom.networks.build import build_network
from stillroom.students.definitions import UNetStudent
from stillroom.teachers.configs import OnnxTeacher
from stillroom.teachers.damage import damage_of, network_weights
from stillroom.teachers.onnx_weights import graph_damage
from stillroom.teachers.probabilities import logits_of


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network(UNetStudent(width=4, depth=2, classes=4).architecture())


def layer(network: nn.Module, kind: type, number: int = 0) -> tuple[str, nn.Module]:
    found = [pair for pair in network.named_modules() if isinstance(pair[1], kind)]
    return found[number]


def test_a_sound_network_has_no_damage(network):
    assert damage_of(network_weights(network)) == ()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("kind", "field"), [(nn.Conv2d, "weight"), (nn.BatchNorm2d, "running_var")]
)
def test_one_value_that_is_not_finite_is_named(network, kind, field, bad):
    name, module = layer(network, kind, -1)
    getattr(module, field).data.view(-1)[-1] = bad
    (fault,) = damage_of(network_weights(network))
    count = getattr(module, field).numel()
    assert fault == f"1 of {count} values of the weights {name}.{field} are not finite"


def test_many_faults_are_counted(network):
    for parameter in network.parameters():
        parameter.data.fill_(torch.nan)
    faults = damage_of(network_weights(network))
    assert len(faults) == 4 and faults[-1].endswith("more faults of the weights")


def broken(path, name: str, change) -> onnx.ModelProto:
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor).copy()
            change(values)
            tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model


@pytest.mark.parametrize(
    ("name", "batch"), [("stem_w", "N"), ("small_w", "N"), ("up_w", "N"), ("stem_w", 1)]
)
def test_nan_in_an_onnx_weight_is_named_and_reaches_the_teacher(make_onnx, tmp_path, name, batch):
    path = make_onnx.save_segmenter(tmp_path / "sound.onnx", tail="sigmoid", batch=batch)
    assert graph_damage(onnx.load(str(path))) == ()

    def change(values):
        values.flat[3] = np.nan

    model = broken(path, name, change)
    (fault,) = graph_damage(model)
    assert f"values of the weights {name} are not finite" in fault
    onnx.save_model(model, str(tmp_path / "broken.onnx"))
    config = OnnxTeacher(target="m", path=str(tmp_path / "broken.onnx"), kind="probabilities")
    built = config.build("cpu")
    assert built.damage == (fault,)
    assert torch.isnan(built(torch.rand(1, 3, 32, 32))["m"]).any()  # for the gate to find


def test_what_was_cut_away_is_not_looked_at(make_onnx, tmp_path):
    path = make_onnx.save_segmenter(tmp_path / "sound.onnx")
    model = broken(path, "up_w", lambda values: values.fill(np.nan))
    onnx.save_model(model, str(tmp_path / "broken.onnx"))
    config = OnnxTeacher(
        target="m", path=str(tmp_path / "broken.onnx"), tensor="feature", kind="features"
    )
    assert config.build("cpu").damage == ()


def test_infinity_in_a_mask_is_no_damage():
    mask = numpy_helper.from_array(np.array([-np.inf, 0], np.float32), "mask")
    nodes = [onnx.helper.make_node("Add", ["x", "mask"], ["y"])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], [mask]))
    assert graph_damage(model) == ()
    model.graph.node[0].op_type = "MatMul"
    assert "1 of 2 values of the weights mask are not finite" in graph_damage(model)[0]


def test_log_odds_of_nan_are_nan():
    said = torch.tensor([0.25, torch.nan]).view(1, 1, 1, 2)
    assert torch.isnan(logits_of(said, "a tensor")).flatten().tolist() == [False, True]
