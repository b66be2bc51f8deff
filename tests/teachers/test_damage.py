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
from stillroom.teachers.onnx import logits_of
from stillroom.teachers.onnx_weights import graph_damage


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


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.BatchNorm2d])
def test_filters_of_zeros_are_named(network, kind):
    name, module = layer(network, kind, 1)
    count = len(module.weight)
    module.weight.data[: count // 2] = 0
    (fault,) = damage_of(network_weights(network))
    assert fault == f"{count // 2} of {count} filters of {name}.weight are dead: all zeros"


@pytest.mark.parametrize(
    ("module", "filters"), [(nn.ConvTranspose2d(6, 8, 2), 1), (nn.Linear(6, 8), 0)]
)
def test_filters_and_inputs_of_zeros_are_told_apart(module, filters):
    module.weight.data.movedim(filters, 0)[1] = 0
    assert damage_of(network_weights(module)) == ("1 of 8 filters of weight are dead: all zeros",)
    module.reset_parameters()
    module.weight.data.movedim(1 - filters, 0)[:2] = 0
    assert damage_of(network_weights(module)) == ("2 of 6 inputs of weight are dead: all zeros",)


def test_a_network_of_grey_pictures_may_listen_to_one_channel():
    module = nn.Conv2d(3, 8, 3)
    module.weight.data[:, 1:] = 0
    assert damage_of(network_weights(module)) == ()


def test_small_filters_and_zero_biases_are_no_damage(network):
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data[0] *= 1e-30
            if module.bias is not None:
                module.bias.data.zero_()
    assert damage_of(network_weights(network)) == ()


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


@pytest.mark.parametrize(("name", "place"), [("stem_w", np.s_[:2]), ("up_w", np.s_[:, :1])])
def test_zero_filters_of_an_onnx_layer_are_named(make_onnx, tmp_path, name, place):
    path = make_onnx.save_segmenter(tmp_path / "sound.onnx", classes=3)
    (fault,) = graph_damage(broken(path, name, lambda values: values.__setitem__(place, 0)))
    assert f"filters of {name} are dead: all zeros" in fault


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
    assert torch.isnan(logits_of(said)).flatten().tolist() == [False, True]
