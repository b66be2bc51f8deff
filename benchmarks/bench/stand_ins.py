"""Pictures and networks that anyone can make: stand-ins with random weights, of a given shape."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench.detector import Layers, random_weights
from onnx import helper, numpy_helper
from PIL import Image

from stillroom.pictures.synthetic import draw_shapes
from stillroom.types import IGNORE


def write_pictures(folder: Path, count: int, size: int, first_seed: int = 0) -> str:
    """Write pictures of shapes on a ground as a binary task; return them as a source."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for seed in range(first_seed, first_seed + count):
        image, mask = draw_shapes(seed, size)
        mask[(mask > 0) & (mask != IGNORE)] = 1
        Image.fromarray(image).save(folder / "images" / f"{seed:06d}.png", compress_level=1)
        Image.fromarray(mask).save(folder / "masks" / f"{seed:06d}.png", compress_level=1)
    return f"folders:{folder / 'images'},{folder / 'masks'}"


def save_convolutions(
    path: Path,
    layers: Layers,
    *,
    inner: str | None = None,
    sigmoid: bool = False,
) -> Path:
    """Write an ONNX network of 3x3 convolutions, `layers` being (channels, stride) of each.

    Batch and size are free. With `inner`, the last layer is a Concat of that name with one more
    convolution and an averaged output after it, which a teacher that taps `inner` cuts.
    """
    nodes, last = [], "image"
    weights = {f"w{number}": weight for number, weight in enumerate(random_weights(layers))}
    for number, (_, stride) in enumerate(layers):
        is_last = number == len(layers) - 1
        nodes.append(_convolution(last, f"w{number}", f"c{number}", stride))
        nodes.append(
            helper.make_node("Identity" if is_last else "Relu", [f"c{number}"], [f"r{number}"])
        )
        last = f"r{number}"
    if inner is not None:
        shape = (4, layers[-1][0], 3, 3)
        weights["w_end"] = np.random.default_rng(1).normal(0, 0.1, shape).astype(np.float32)
        halves = ["half_0", "half_1"]
        nodes.append(helper.make_node("Split", [last], halves, axis=1, num_outputs=2))
        nodes.append(helper.make_node("Concat", halves, [inner], axis=1))
        nodes.append(_convolution(inner, "w_end", "end", 1))
        nodes.append(helper.make_node("GlobalAveragePool", ["end"], ["output"]))
    else:
        nodes.append(helper.make_node("Sigmoid" if sigmoid else "Identity", [last], ["output"]))
    _save(path, nodes, weights)
    return path


def _convolution(source: str, weight: str, result: str, stride: int) -> onnx.NodeProto:
    options: dict[str, Any] = {"pads": [1, 1, 1, 1], "strides": [stride, stride]}
    return helper.make_node("Conv", [source, weight], [result], **options)


def _save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> None:
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])
    output = helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, list("NCYX"))
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, path.stem, [image], [output], tensors)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="stillroom"
    )
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))
