"""Makes tiny ONNX segmenters with random weights and the ways that real exports have."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

Tail = Literal[
    "logits",
    "sigmoid",
    "softmax",
    "reshape_to_batch_1",
    "minus_batch_mean",
    "resize_to_32",
    "pool_of_16",
    "pool_of_16_averaged",
    "global_pool",
    "if",
]


def save_segmenter(
    path: Path,
    *,
    tail: Tail = "logits",
    classes: int = 1,
    batch: int | str = "N",
    size: tuple[int | str, int | str] = ("H", "W"),
    opset: int = 13,
    ir: int = 8,
    weights_as_inputs: bool = False,
    element: int = onnx.TensorProto.FLOAT,
    output: int | None = None,
) -> Path:
    """Write image -> stem (8, stride 2) -> feature (ReLU) -> small (1x1) -> logits (x 2) -> tail.

    The wanted output is called `output`; `path` is returned. Input and weights are of type
    `element`; with `output`, the tail `logits` casts to another.
    """
    rng = np.random.default_rng(0)
    weights = {
        "stem_w": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "small_w": rng.normal(0, 1, (classes, 8, 1, 1)),
        "up_w": rng.normal(0, 1, (classes, classes, 2, 2)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "stem_w"], ["stem"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["stem"], ["feature"]),
        helper.make_node("Conv", ["feature", "small_w"], ["small"]),
        helper.make_node("ConvTranspose", ["small", "up_w"], ["logits"], strides=[2, 2]),
    ]
    tail_nodes, constants = _tail(tail, classes)
    if output is not None:
        assert tail == "logits"
        tail_nodes = [helper.make_node("Cast", ["logits"], ["output"], to=output)]
    numpy_type = helper.tensor_dtype_to_np_dtype(element)
    initializers = [
        numpy_helper.from_array(value.astype(numpy_type), name) for name, value in weights.items()
    ] + [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [_picture(batch, size, element)]
    if weights_as_inputs:
        inputs += [helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in initializers]
    graph = helper.make_graph(
        nodes + tail_nodes,
        "segmenter",
        inputs,
        [helper.make_tensor_value_info("output", output or element, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.save_model(model, str(path))
    return path


def _picture(batch: int | str, size: tuple[int | str, int | str], element: int) -> Any:
    return helper.make_tensor_value_info("image", element, [batch, 3, *size])


def _tail(tail: Tail, classes: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Return the nodes from `logits` to `output` and the constants that they read."""
    if tail == "logits":
        return [helper.make_node("Identity", ["logits"], ["output"])], {}
    if tail == "sigmoid":
        return [helper.make_node("Sigmoid", ["logits"], ["output"])], {}
    if tail == "softmax":
        return [helper.make_node("Softmax", ["logits"], ["output"], axis=1)], {}
    if tail == "reshape_to_batch_1":
        shape = np.array([1, classes, 32, 32], np.int64)
        return [helper.make_node("Reshape", ["logits", "shape"], ["output"])], {"shape": shape}
    if tail == "minus_batch_mean":
        mean = helper.make_node("ReduceMean", ["logits"], ["mean"], axes=[0], keepdims=1)
        return [mean, helper.make_node("Sub", ["logits", "mean"], ["output"])], {}
    if tail == "resize_to_32":
        sizes = np.array([1, classes, 32, 32], np.int64)
        node = helper.make_node("Resize", ["logits", "", "", "sizes"], ["output"], mode="linear")
        return [node], {"sizes": sizes}
    if tail == "pool_of_16":
        pool = helper.make_node("AveragePool", ["small"], ["pooled"], kernel_shape=[16, 16])
        return [pool, helper.make_node("Add", ["logits", "pooled"], ["output"])], {}
    if tail == "pool_of_16_averaged":  # runs at any size, and means another thing at each
        pool = helper.make_node("AveragePool", ["small"], ["pooled"], kernel_shape=[16, 16])
        mean = helper.make_node("GlobalAveragePool", ["pooled"], ["mean"])
        return [pool, mean, helper.make_node("Add", ["logits", "mean"], ["output"])], {}
    if tail == "global_pool":
        mean = helper.make_node("GlobalAveragePool", ["small"], ["mean"])
        return [mean, helper.make_node("Add", ["logits", "mean"], ["output"])], {}
    return _branches(), {"yes": np.array(True)}


def _branches() -> list[Any]:
    """Both branches of an If read `logits` and the weight `small_w` from outside."""
    value = helper.make_tensor_value_info("chosen", onnx.TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("Neg", ["logits"], ["chosen"])], "then", [], [value])
    other = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["small_w"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["logits", "sum"], ["chosen"]),
        ],
        "else",
        [],
        [value],
    )
    return [helper.make_node("If", ["yes"], ["output"], then_branch=then, else_branch=other)]
