"""The weights of an ONNX graph as the search for damage wants them."""

from collections.abc import Iterable

import onnx
from onnx import numpy_helper

from stillroom.teachers.damage import Weights, damage_of

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_LAYERS = {"Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul"}


def graph_damage(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return what is wrong with the weights of a graph without external data; empty = nothing."""
    return (*_training(model), *damage_of(_weights(model)))


def _training(model: onnx.ModelProto) -> Iterable[str]:
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    training = [node for node in nodes if len(list(filter(None, node.output))) > 1]
    if training:
        yield (
            f"{len(training)} of {len(nodes)} BatchNorms are in training mode ({training[0].name}"
            " is the first): they take their statistics from the pictures at hand"
        )


def _weights(model: onnx.ModelProto) -> Iterable[Weights]:
    """Yield the graph's constants of floats; what a layer multiplies with must be finite, and of a
    convolution or BatchNorm the axes of its filters and inputs are known.
    """
    axes: dict[str, tuple[int | None, int | None]] = {}
    multiplied: set[str] = set()
    for node in model.graph.node:
        if node.op_type in _LAYERS:
            multiplied.update(node.input)
        if node.op_type == "BatchNormalization":
            axes[node.input[1]] = (0, None)
        elif node.op_type == "Conv":
            axes[node.input[1]] = (0, 1)
        elif node.op_type == "ConvTranspose":
            axes[node.input[1]] = (1 if _group(node) == 1 else None, 0)
    for tensor in model.graph.initializer:
        if tensor.data_type in _FLOATS:
            yield Weights(
                tensor.name,
                numpy_helper.to_array(tensor),
                *axes.get(tensor.name, (None, None)),
                may_be_infinite=tensor.name not in multiplied,
            )


def _group(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)
