"""The U-Net over torchvision's VGG16 or ResNet50, the teacher of the system S0.

Ten classes: 24,891,722 parameters with VGG16 (its encoder 14,714,688), 43,933,386 with ResNet50.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.networks.description import Classes, Triple, describe
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from stillroom.networks.taps import Network
from stillroom.networks.trunk import Trunk

_VGG16 = {"3": "f1", "8": "f2", "15": "f3", "22": "f4", "29": "f5"}  # the ReLUs before the pools
_RESNET50 = {"relu": "f1", "layer1": "f2", "layer2": "f3", "layer3": "f4", "layer4": "f5"}
_CHANNELS = {"vgg16": (64, 128, 256, 512, 512), "resnet50": (64, 256, 512, 1024, 2048)}
_DECODER = (512, 256, 128, 64)  # from coarse to fine


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneUNetFields:
    """What describes a U-Net over a torchvision backbone, in `student.json`."""

    backbone: Literal["vgg16", "resnet50"] = "vgg16"  # vgg16: VGG16 without BatchNorm
    classes: Classes = 1  # channels of the logits; 1 for a binary task
    mean: Triple = IMAGENET_MEAN  # of RGB in [0, 1], as the backbone's weights were trained
    std: Triple = IMAGENET_STD  # of RGB in [0, 1], as the backbone's weights were trained

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, without weights."""
        return describe("backbone-unet", BackboneUNetFields, self)


class BackboneUNet(Network):
    """Five features f1 to f5, and four blocks that bring the coarsest back to the finest.

    Taps f1 to f5 have strides 1, 2, 4, 8, 16 with VGG16 (the last pool is dropped) and 2, 4, 8, 16,
    32 with ResNet50. Its pool has no padding but rounds up, which moves what torchvision's would
    see by one cell. The decoder has no normalisation: its first weights are He's.
    """

    def __init__(
        self, backbone: str, classes: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.encoder = _vgg16() if backbone == "vgg16" else _resnet50()
        *skips, below = _CHANNELS[backbone]
        blocks = []
        for skip, c_out in zip(reversed(skips), _DECODER, strict=True):
            blocks.append(_Up(below + skip, c_out))
            below = c_out
        self.decoder = nn.ModuleList(blocks)
        is_halved = backbone != "vgg16"  # f1 has half the size of the picture
        self.last = nn.Sequential(_Twice(), *_convolutions(below, below)) if is_halved else None
        self.segmentation_head = nn.Conv2d(below, classes, 1)
        self.stride = 32 if is_halved else 16
        self.taps = ("f1", "f2", "f3", "f4", "f5")

    def _run(self, image: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and features of a normalised picture."""
        features = self.encoder(image)
        *skips, x = features.values()
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = block(skip, x)
        if self.last is not None:
            x = self.last(x)
        return self.segmentation_head(x), features


class _Up(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.twice = _Twice()
        self.convolutions = nn.Sequential(*_convolutions(c_in, c_out))

    def forward(
        self, skip: Float[Tensor, "b _ h w"], below: Float[Tensor, "b _ y x"]
    ) -> Float[Tensor, "b _ h w"]:
        return self.convolutions(torch.cat([skip, self.twice(below)], dim=1))


class _Twice(nn.UpsamplingBilinear2d):
    """Bilinear, corners aligned."""

    def __init__(self) -> None:
        super().__init__(scale_factor=2)


def _convolutions(c_in: int, c_out: int) -> list[nn.Module]:
    """Two 3x3 convolutions with bias, each with ReLU."""
    layers: list[nn.Module] = []
    for channels in (c_in, c_out):
        layer = nn.Conv2d(channels, c_out, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        layers += [layer, nn.ReLU(inplace=True)]
    return layers


def _vgg16() -> Trunk:
    """Its convolutions alone: the classifier that they come with has 124 M parameters more."""
    from torchvision.models.vgg import cfgs, make_layers

    trunk = Trunk(make_layers(cfgs["D"]).named_children(), _VGG16)
    for layer in trunk.values():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return trunk


def _resnet50() -> Trunk:
    from torchvision.models import resnet50

    model = resnet50(weights=None)
    model.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return Trunk(model.named_children(), _RESNET50)
