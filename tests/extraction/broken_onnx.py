"""Breaks a trained ONNX network in the ways that happen to people."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

CONVOLUTIONS = ("Conv", "ConvTranspose")


def broken(path: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield each fault's name and a copy of the network that has it; the batch is made free."""
    layers = _layers(_load(path))
    middle = layers[len(layers) // 2]
    for name, change in (
        ("NaN in one weight", lambda values: _with(values, 0, np.nan)),
        ("NaN layer", lambda values: np.full_like(values, np.nan)),
        ("a quarter of a layer's filters zero", lambda values: _zeroed(values, 4)),
        ("half of a layer's filters zero", lambda values: _zeroed(values, 2)),
    ):
        yield name, edited(_load(path), {middle}, change)
    last = _last(_load(path))
    yield "output layer zero", edited(_load(path), {last}, np.zeros_like)
    rng = np.random.default_rng(0)
    yield (
        "random weights",
        edited(_load(path), set(layers), lambda v: rng.normal(0, v.std(), v.shape)),
    )
    yield "BatchNorm in training mode", train_batch_norm(_load(path))
    yield "batch statistics without BatchNorm", with_batch_statistics(_load(path))


def edited(model: onnx.ModelProto, names: set[str], change) -> onnx.ModelProto:
    """Return the model with the weights of these names changed."""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            values = np.asarray(change(numpy_helper.to_array(tensor)), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def train_batch_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every BatchNormalization in training mode (before opset 14: it has more
    than one output); where all were fused, with one put behind the middle convolution.
    """
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if not nodes:
        place, conv = _middle_convolution(model)
        channels = _channels(model, conv)
        values = {"bn_scale": 1.0, "bn_bias": 0.0, "bn_mean": 0.0, "bn_var": 1.0}
        model.graph.initializer.extend(
            numpy_helper.from_array(np.full(channels, v, np.float32), n) for n, v in values.items()
        )
        inner, outer = f"{conv.output[0]}_before_bn", conv.output[0]
        conv.output[0] = inner
        nodes = [helper.make_node("BatchNormalization", [inner, *values], [outer], name="bn")]
        model.graph.node.insert(place + 1, nodes[0])
        nodes = [model.graph.node[place + 1]]
    assert model.opset_import[0].version < 14
    for node in nodes:
        node.output.extend(f"{node.output[0]}_{name}" for name in ("m", "v", "sm", "sv"))
    return model


def with_batch_statistics(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the middle convolution's answer less its mean over the batch, which no
    flag shows.
    """
    place, conv = _middle_convolution(model)
    inner, outer = f"{conv.output[0]}_inner", conv.output[0]
    conv.output[0] = inner
    mean = helper.make_node("ReduceMean", [inner], ["batch_mean"], axes=[0, 2, 3], keepdims=1)
    model.graph.node.insert(place + 1, mean)
    model.graph.node.insert(place + 2, helper.make_node("Sub", [inner, "batch_mean"], [outer]))
    return model


def _load(path: Path) -> onnx.ModelProto:
    model = onnx.load(str(path))
    model.graph.ClearField("value_info")
    return model


def _weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def _layers(model: onnx.ModelProto) -> list[str]:
    """The weights of the convolutions without groups, in the order of the graph."""
    nodes = [node for node in model.graph.node if node.op_type in CONVOLUTIONS]
    groups = [next((a.i for a in node.attribute if a.name == "group"), 1) for node in nodes]
    return [node.input[1] for node, group in zip(nodes, groups, strict=True) if group == 1]


def _last(model: onnx.ModelProto) -> str:
    return _layers(model)[-1]


def _middle_convolution(model: onnx.ModelProto) -> tuple[int, onnx.NodeProto]:
    middle = _layers(model)[len(_layers(model)) // 2]
    places = [
        (i, node)
        for i, node in enumerate(model.graph.node)
        if node.op_type in CONVOLUTIONS and node.input[1] == middle
    ]
    return places[0]


def _channels(model: onnx.ModelProto, conv: onnx.NodeProto) -> int:
    return _weights(model)[conv.input[1]][1 if conv.op_type == "ConvTranspose" else 0]


def _with(values: np.ndarray, place: int, value: float) -> np.ndarray:
    values = values.copy()
    values.flat[place] = value
    return values


def _zeroed(values: np.ndarray, share: int) -> np.ndarray:
    values = values.copy()
    values[: max(1, len(values) // share)] = 0
    return values
