"""Students that may begin from weights of torchvision or of a file."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from stillroom.errors import UserError
from stillroom.networks.backbone_unet import BackboneUNetFields
from stillroom.networks.build import Network, build_network
from stillroom.networks.deeplab_lite import DeepLabLiteFields
from stillroom.networks.fastlite import FastLiteFields
from stillroom.networks.fcn import VOC_WEIGHTS, FcnFields
from stillroom.networks.torchvision_weights import fetch
from stillroom.networks.weights import load_matching, load_part, load_weights, read_weights

_log = logging.getLogger(__name__)


class _Download(NamedTuple):
    name: str  # torchvision's
    part: str  # the module of the network that it fills; empty = the whole network


_UNET = {
    "vgg16": {"imagenet": _Download("VGG16_Weights.IMAGENET1K_V1", "encoder")},
    "resnet50": {"imagenet": _Download("ResNet50_Weights.IMAGENET1K_V1", "encoder")},
}
_FCN = {
    "imagenet": _Download("ResNet50_Weights.IMAGENET1K_V1", "backbone"),
    "voc": _Download(VOC_WEIGHTS, ""),
}
_DEEPLAB = {
    "imagenet": _Download("MobileNet_V3_Large_Weights.IMAGENET1K_V1", "backbone"),
    "voc": _Download("DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1", "backbone"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneUNetStudent(BackboneUNetFields):
    """The U-Net over torchvision's VGG16 or ResNet50."""

    # of the backbone: "imagenet" (download), a file with torchvision's names, or none
    weights: str | None = None
    # take from the file, for the whole network, what fits by name and shape, and say what did
    partial: bool = False
    # finished run of the same student that this one begins from, runs/NAME, in place of `weights`
    begin: str | None = None

    def __post_init__(self) -> None:
        _check(self.weights, self.partial, _UNET.get(self.backbone, {}))

    def prefetch(self) -> None:
        """Download the backbone's weights, where wanted; on one rank before the others build."""
        _prefetch(_first(self.weights, self.begin), _UNET.get(self.backbone, {}))

    def build(self) -> Network:
        """Return the network; UserError when its weights do not fit or cannot be had."""
        network = build_network(self.architecture())
        downloads = _UNET.get(self.backbone, {})
        weights = _first(self.weights, self.begin)
        _load(network, weights, self.partial, downloads, "encoder", "encoder")
        return network


@dataclass(frozen=True, slots=True, kw_only=True)
class FastLiteStudent(FastLiteFields):
    """FastLiteSSNet."""

    weights: str | None = None  # a file of the whole network, or none
    partial: bool = False  # take from the file what fits by name and shape, and say what did
    # finished run of the same student that this one begins from, runs/NAME, in place of `weights`
    begin: str | None = None

    def __post_init__(self) -> None:
        _check(self.weights, self.partial, {})

    def prefetch(self) -> None:
        """Download nothing: nobody offers weights of this network."""

    def build(self) -> Network:
        """Return the network; UserError when its weights do not fit."""
        network = build_network(self.architecture())
        _load(network, _first(self.weights, self.begin), self.partial, {}, "", "")
        return network


@dataclass(frozen=True, slots=True, kw_only=True)
class FcnStudent(FcnFields):
    """torchvision's FCN-ResNet50, to train a teacher of one's own."""

    # "voc" (download: trained on COCO with the 21 classes of VOC), "imagenet" (download: of the
    # backbone), a file of the whole network with torchvision's names, or none
    weights: str | None = None
    partial: bool = False  # take from the file what fits by name and shape, and say what did
    # finished run of the same student that this one begins from, runs/NAME, in place of `weights`
    begin: str | None = None

    def __post_init__(self) -> None:
        _check(self.weights, self.partial, _FCN)

    def prefetch(self) -> None:
        """Download the weights, where wanted; on one rank before the others build."""
        _prefetch(_first(self.weights, self.begin), _FCN)

    def build(self) -> Network:
        """Return the network; UserError when its weights do not fit or cannot be had."""
        network = build_network(self.architecture())
        _load(network, _first(self.weights, self.begin), self.partial, _FCN, "", "backbone")
        return network


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepLabV3LiteStudent(DeepLabLiteFields):
    """The light DeepLabV3 over MobileNetV3-Large."""

    # of the backbone: "imagenet" (download), "voc" (download: of torchvision's DeepLabV3, which has
    # seen the labels of VOC), a file with torchvision's names of either, or none
    weights: str | None = None
    # take from the file, for the whole network, what fits by name and shape, and say what did
    partial: bool = False
    # finished run of the same student that this one begins from, runs/NAME, in place of `weights`
    begin: str | None = None

    def __post_init__(self) -> None:
        _check(self.weights, self.partial, _DEEPLAB)

    def prefetch(self) -> None:
        """Download the backbone's weights, where wanted; on one rank before the others build."""
        _prefetch(_first(self.weights, self.begin), _DEEPLAB)

    def build(self) -> Network:
        """Return the network; UserError when its weights do not fit or cannot be had."""
        network = build_network(self.architecture())
        weights = _first(self.weights, self.begin)
        _load(network, weights, self.partial, _DEEPLAB, "backbone", "backbone")
        return network


def _check(weights: str | None, partial: bool, downloads: Mapping[str, _Download]) -> None:
    if partial and (weights is None or weights in downloads):
        raise UserError(
            "only a weights file can be loaded in part",
            found=f"weights {weights}",
            fix="name a file with --student.weights, or leave --student.partial out",
        )


def _first(weights: str | None, begin: str | None) -> str | None:
    """Return where the first weights come from; None where the student begins from a run."""
    return weights if begin is None else None


def _prefetch(weights: str | None, downloads: Mapping[str, _Download]) -> None:
    if weights is not None and weights in downloads:
        fetch(downloads[weights].name, "--student.weights FILE, or none for random weights")


def _load(
    network: Network,
    weights: str | None,
    partial: bool,
    downloads: Mapping[str, _Download],
    part: str,
    trunk: str,
) -> None:
    """Give a network its first weights.

    Strictly, a file fills `part` (empty: all of it); `trunk` is where its names may be
    torchvision's.
    """
    if weights is None:
        return
    if weights in downloads:
        name, filled = downloads[weights]
        state = fetch(name, "--student.weights FILE, or none for random weights")
        load_part(network, filled, state, name)
    elif partial:
        network.report = str(load_matching(network, trunk, weights))
    elif part:
        unused = load_part(network, part, read_weights(weights), weights)
        _log.info("%s: not used by the %s: %s", weights, part, ", ".join(unused))
    else:
        network.report = load_weights(network, weights)
