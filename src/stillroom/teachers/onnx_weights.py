"""The weights of an ONNX graph as the search for damage wants them."""

import math
from collections.abc import Iterable

import onnx
from onnx import numpy_helper

from stillroom.errors import UserError
from stillroom.teachers.damage import Weights, damage_of

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_LAYERS = {"Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul"}


def graph_damage(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return what is wrong with the weights of a graph without external data; empty = nothing."""
    return (*_training(model), *damage_of(_weights(model)))


def num_parameters(model: onnx.ModelProto) -> int:
    """Return how many numbers the graph's constants of floats hold."""
    weights = (tensor for tensor in model.graph.initializer if tensor.data_type in _FLOATS)
    return sum(math.prod(tensor.dims) for tensor in weights)


def _training(model: onnx.ModelProto) -> Iterable[str]:
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    training = [node for node in nodes if len(list(filter(None, node.output))) > 1]
    if training:
        yield (
            f"{len(training)} of {len(nodes)} BatchNorms are in training mode ({training[0].name}"
            " is the first): they take their statistics from the pictures at hand"
        )


def _weights(model: onnx.ModelProto) -> Iterable[Weights]:
    """Yield the graph's constants of floats; what a layer multiplies with must be finite."""
    layers = [node for node in model.graph.node if node.op_type in _LAYERS]
    multiplied = {name for node in layers for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.data_type in _FLOATS:
            try:
                values = numpy_helper.to_array(tensor)
            except ValueError as error:
                shape = "x".join(map(str, tensor.dims))
                raise UserError(
                    f"the weights {tensor.name} are not of their shape {shape:.80}",
                    found=str(error),
                    fix="copy the network again from where it came from",
                ) from None
            yield Weights(tensor.name, values, may_be_infinite=tensor.name not in multiplied)
