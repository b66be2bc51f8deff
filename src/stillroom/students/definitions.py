"""The students that a recipe can name: plain values that know how to build their network."""

import logging
from dataclasses import dataclass
from typing import Any

from stillroom.networks.build import Network, build_network, load_encoder_weights
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD
from stillroom.networks.smp import SmpNetwork, prefetch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmpStudent:
    """Any network of segmentation_models_pytorch."""

    arch: str = "unet"  # smp's name of the architecture
    encoder: str = "tu-mobilenetv2_035"  # smp's name of the encoder; timm- and tu- are not the same
    classes: int = 1  # channels of the logits; 1 for a binary task
    weights: str | None = None  # of the encoder: a timm file, "imagenet" (download), or none
    mean: tuple[float, float, float] = IMAGENET_MEAN  # that the encoder expects, RGB in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD  # that the encoder expects
    decoder_channels: tuple[int, ...] | None = None  # from coarse to fine; none: smp's default

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, without weights."""
        channels = self.decoder_channels
        return {
            "name": "smp",
            "arch": self.arch,
            "encoder": self.encoder,
            "classes": self.classes,
            "mean": list(self.mean),
            "std": list(self.std),
            "decoder_channels": None if channels is None else list(channels),
        }

    def prefetch(self) -> None:
        """Download the encoder's weights, where wanted; on one rank before the others build."""
        if self.weights == "imagenet":
            prefetch(self.encoder)

    def build(self) -> Network:
        """Return the network; UserError when its encoder's weights do not fit or cannot be had."""
        if self.weights == "imagenet":
            return SmpNetwork(
                self.arch,
                self.encoder,
                self.classes,
                self.mean,
                self.std,
                self.decoder_channels,
                encoder_weights="imagenet",
            )
        network = build_network(self.architecture())
        if self.weights is not None:
            assert isinstance(network, SmpNetwork)
            unused = load_encoder_weights(network, self.weights)
            _log.info("%s: not used by the encoder: %s", self.weights, ", ".join(unused))
        return network


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetStudent:
    """The small U-Net of our own."""

    width: int = 8  # channels at full size, doubled at each halving
    depth: int = 3  # halvings; pictures must be multiples of 2**depth
    classes: int = 1  # channels of the logits; 1 for a binary task
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of RGB in [0, 1]
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description."""
        return {
            "name": "unet",
            "width": self.width,
            "depth": self.depth,
            "classes": self.classes,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def prefetch(self) -> None:
        """Download nothing: this network starts from random weights."""

    def build(self) -> Network:
        """Return the network with random weights."""
        return build_network(self.architecture())


Student = SmpStudent | UNetStudent
