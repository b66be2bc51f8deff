"""A detector's trunk of YOLOv9-E's cost as plain 3x3 convolutions of random weights, in torch.

YOLOv9-E does 189 GFLOP, about 95 GMAC, a picture of 640x640; `yolov9_e_sized` does 96.4 GMAC and
ends in a feature of the same shape, 1024x80x80. Fewer and larger convolutions keep a GPU busier
than the real network's hundreds of small ones. `bench.stand_ins` writes the same as ONNX. A teacher
is built from this file alone, so it imports nothing of ours.
"""

from collections import OrderedDict

import numpy as np
import torch
from torch import nn

Layers = tuple[tuple[int, int], ...]  # (channels, stride) of each convolution

YOLOV9_E_SIZED: Layers = (
    *((64, 2), (128, 2), (128, 1), (256, 1), (256, 1)),
    *((512, 2), (512, 1), (512, 1), (1024, 1)),
)
NARROW: Layers = tuple((channels // 16, stride) for channels, stride in YOLOV9_E_SIZED)
FEATURES = "features"  # the module whose output is the inner tensor


def yolov9_e_sized() -> nn.Sequential:
    """The trunk at its full width."""
    return convolutions(YOLOV9_E_SIZED)


def narrow() -> nn.Sequential:
    """The same with a sixteenth of the channels."""
    return convolutions(NARROW)


def convolutions(layers: Layers) -> nn.Sequential:
    """Return convolutions with a ReLU between each two; the last is named `features`."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    last = len(layers) - 1
    for number, (weight, (_, stride)) in enumerate(
        zip(random_weights(layers), layers, strict=True)
    ):
        width, channels = weight.shape[:2]
        convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        convolution.weight = nn.Parameter(torch.from_numpy(weight))
        modules[FEATURES if number == last else f"convolution_{number}"] = convolution
        if number < last:
            modules[f"relu_{number}"] = nn.ReLU()
    return nn.Sequential(modules)


def random_weights(layers: Layers) -> list[np.ndarray]:
    """Return each layer's weights (out, in, 3, 3) float32, the same ones at every call."""
    generator, channels, weights = np.random.default_rng(0), 3, []
    for width, _ in layers:
        deviation = (2 / (9 * channels)) ** 0.5
        weights.append(generator.normal(0, deviation, (width, channels, 3, 3)).astype(np.float32))
        channels = width
    return weights


def count_macs(layers: Layers, size_px: int) -> int:
    """Return the multiply-accumulates of one picture of `size_px` x `size_px`."""
    total, channels, size = 0, 3, size_px
    for width, stride in layers:
        size = -(-size // stride)
        total += 9 * channels * width * size * size
        channels = width
    return total
