"""FastLiteSSNet, the student of the system S0: a light U-Net whose features meet in one map.

Ten classes: 609,481 parameters at width .3, 1,720,862 at .5, 6,867,502 at 1.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from stillroom.networks.description import Classes, Triple, describe
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from stillroom.networks.taps import Network

_CHANNELS = (32, 64, 128, 256, 512)  # at width 1, from fine to coarse


@dataclass(frozen=True, slots=True, kw_only=True)
class FastLiteFields:
    """What describes a FastLiteSSNet, in `student.json`."""

    # factor of the channels 32 64 128 256 512, rounded down
    width: Annotated[float, msgspec.Meta(ge=0.05, le=16)] = 0.5
    classes: Classes = 1  # channels of the logits; 1 for a binary task
    mean: Triple = IMAGENET_MEAN  # of RGB in [0, 1]
    std: Triple = IMAGENET_STD  # of RGB in [0, 1]

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, without weights."""
        return describe("fastlite", FastLiteFields, self)


class FastLite(Network):
    """Four stages, each of which is pooled; their pooled outputs meet at stride 16 (`FCSF`).

    Taps: `skip1` to `skip4` have strides 1, 2, 4, 8 (the stages before their pools) and `fused` 16,
    which are the grids of f1 to f5 of the U-Net with VGG16. The published code throws away what it
    pools, so that every map there has the size of the picture.
    """

    def __init__(
        self, width: float, classes: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        *channels, deepest = (int(c * width) for c in _CHANNELS)
        self.normalise = Normalise(mean, std)
        self.encoder = nn.ModuleList(
            nn.Sequential(_cbr(c_in, c_out), _cbr(c_out, c_out))
            for c_in, c_out in zip([3, *channels], channels, strict=False)
        )
        self.fcsf = FCSF(channels, channels[-1])
        self.begm = BEGM(channels[-1])
        self.bottleneck = _cbr(channels[-1], deepest)
        self.decoder = nn.ModuleList(
            nn.Sequential(_cbr(below + c, c), BEGM(c))
            for below, c in zip([deepest, *channels[:0:-1]], channels[::-1], strict=True)
        )
        self.segmentation_head = nn.Conv2d(channels[0], classes, 1)
        self.stride = 16
        self.taps = ("skip1", "skip2", "skip3", "skip4", "fused")
        self.apply(_first_weights)

    def _run(self, image: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and features of a normalised picture."""
        skips: list[Tensor] = []
        pooled = [image]
        for stage in self.encoder:
            skips.append(stage(pooled[-1]))
            pooled.append(functional.max_pool2d(skips[-1], 2))
        fused = self.fcsf(pooled[1:])
        named = dict(zip(self.taps, [*skips, fused], strict=True))
        x = self.bottleneck(self.begm(fused))
        for block in self.decoder:
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
            x = block(torch.cat([skips.pop(), x], dim=1))
        return self.segmentation_head(x), named


class FCSF(nn.Module):
    """Full-scale feature fusion: a learned mixture of all scales on the grid of the smallest."""

    def __init__(self, channels: list[int], c_out: int) -> None:
        """`channels` are those of the features, from fine to coarse."""
        super().__init__()
        self.each = nn.ModuleList(nn.Conv2d(c, c_out, 1, bias=False) for c in channels)
        self.shared = nn.Conv2d(c_out, c_out, 1, bias=False)
        self.mixture = nn.Parameter(torch.full((len(channels),), 0.25))
        self.fuse = _cbr(c_out, c_out)

    def forward(self, features: list[Tensor]) -> Float[Tensor, "b c y x"]:
        """Return one map on the grid of the last feature."""
        grid = features[-1].shape[2:]
        weights = self.mixture.softmax(0)
        x = torch.zeros((), device=weights.device)
        for weight, own, feature in zip(weights, self.each, features, strict=True):
            small = functional.interpolate(feature, grid, mode="bilinear", align_corners=True)
            x = x + weight * self.shared(own(small))
        return self.fuse(x)


class BEGM(nn.Module):
    """Boundary enhancement: a map in [0, 1] says where a feature is amplified, up to twofold."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 1, 1, bias=False),
            nn.Sigmoid(),
        )
        self.after = _cbr(channels, channels)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """Return a map of the same shape."""
        return self.after(x * (1 + self.edges(x)))


def _cbr(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


def _first_weights(module: nn.Module) -> None:
    """N(0, .02) for convolutions, N(1, .02) for the scale of BatchNorm, 0 for biases."""
    if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
        mean = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
        nn.init.normal_(module.weight, mean, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
