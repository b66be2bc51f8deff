"""A small U-Net of our own: conv-BatchNorm-ReLU blocks, quick on a CPU, nothing to download.

4 classes: width 4, depth 3 has 30,864 parameters; width 16, depth 3 has 488,052.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.networks.description import Classes, Depth, Triple, Width, describe
from stillroom.networks.normalise import Normalise
from stillroom.networks.taps import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetFields:
    """What describes a U-Net of our own: of a student, in `student.json`."""

    width: Width = 8  # channels at full size, doubled at each halving
    depth: Depth = 3  # halvings; pictures must be multiples of 2**depth
    classes: Classes = 1  # channels of the logits; 1 for a binary task
    mean: Triple = (0.5, 0.5, 0.5)  # of RGB in [0, 1]
    std: Triple = (0.5, 0.5, 0.5)  # of RGB in [0, 1]

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, without weights."""
        return describe("unet", UNetFields, self)


class UNet(Network):
    """`depth` halvings, `width` channels at full size, twice as many at each halving.

    Taps: `encoder.N` has stride 2**N, N from 0 to `depth`; `decoder.N` has stride 2**(depth - 1 -
    N).
    """

    def __init__(
        self, width: int, depth: int, classes: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(depth + 1)]
        self.normalise = Normalise(mean, std)
        self.encoder = nn.ModuleList(
            _block(3 if level == 0 else channels[level - 1], channels[level])
            for level in range(depth + 1)
        )
        self.decoder = nn.ModuleList(
            _block(channels[level + 1] + channels[level], channels[level])
            for level in reversed(range(depth))
        )
        self.segmentation_head = nn.Conv2d(width, classes, 1)
        self.stride = 2**depth
        self.taps = tuple(f"encoder.{level}" for level in range(depth + 1)) + tuple(
            f"decoder.{block}" for block in range(depth)
        )

    def _run(self, image: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and features of a normalised picture."""
        features = [self.encoder[0](image)]
        for block in list(self.encoder)[1:]:
            features.append(block(nn.functional.max_pool2d(features[-1], 2)))
        named = {f"encoder.{level}": feature for level, feature in enumerate(features)}
        x = features.pop()
        for number, block in enumerate(self.decoder):
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, features.pop()], dim=1))
            named[f"decoder.{number}"] = x
        return self.segmentation_head(x), named


def _block(c_in: int, c_out: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )
