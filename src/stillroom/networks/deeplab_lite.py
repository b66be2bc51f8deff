"""The light DeepLabV3 of the system S1: MobileNetV3-Large, one dilated convolution, no pyramid.

3,813,957 parameters with 21 classes.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from stillroom.networks.description import Classes, Triple, describe
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from stillroom.networks.taps import Network

_CHANNELS = 960  # of the backbone
_HIDDEN = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepLabLiteFields:
    """What describes a light DeepLabV3, in `student.json`."""

    classes: Classes = 21  # channels of the logits; 1 for a binary task
    mean: Triple = IMAGENET_MEAN  # of RGB in [0, 1], as the backbone's weights were trained
    std: Triple = IMAGENET_STD  # of RGB in [0, 1], as the backbone's weights were trained

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, without weights."""
        return describe("deeplab-lite", DeepLabLiteFields, self)


class DeepLabLite(Network):
    """torchvision's dilated MobileNetV3-Large, whose parameters keep their names, and a head.

    Tap `backbone` has 960 channels at stride 16.
    """

    def __init__(self, classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v3_large

        self.normalise = Normalise(mean, std)
        self.backbone = mobilenet_v3_large(weights=None, dilated=True).features
        self.classifier = nn.Sequential(
            nn.Conv2d(_CHANNELS, _HIDDEN, 1, bias=False),
            nn.BatchNorm2d(_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=6, dilation=6, bias=False),
            nn.BatchNorm2d(_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            nn.Conv2d(_HIDDEN, classes, 1),
        )
        for layer in self.classifier:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.stride = 16
        self.taps = ("backbone",)

    def _run(self, image: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and the feature of a normalised picture."""
        feature = self.backbone(image)
        logits = functional.interpolate(
            self.classifier(feature), image.shape[2:], mode="bilinear", align_corners=False
        )
        return logits, {"backbone": feature}
