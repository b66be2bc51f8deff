"""The students that a recipe can name: plain values that know how to build their network."""

import logging
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

from stillroom.networks.binary_unet import BinaryUNetFields
from stillroom.networks.build import Network, build_network, load_encoder_weights, load_weights
from stillroom.networks.region import RegionFields, RegionNetwork
from stillroom.networks.smp import SmpFields, SmpNetwork, prefetch
from stillroom.networks.torch_network import TorchFields
from stillroom.networks.unet import UNetFields
from stillroom.user_code import load_function

_log = logging.getLogger(__name__)


@runtime_checkable
class Student(Protocol):
    """What is trained; a frozen dataclass, so that its fields are flags of the command line."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def classes(self) -> int:
        """Channels of the logits; 1 for a binary task."""
        ...

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, for `build_network`."""
        ...

    def prefetch(self) -> None:
        """Download what is needed; called on one rank before the others build."""
        ...

    def build(self) -> Network:
        """Return the network with its first weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SmpStudent(SmpFields):
    """Any network of segmentation_models_pytorch."""

    encoder: str = "tu-mobilenetv2_035"  # smp's exact name: timm-x and tu-x are different networks
    weights: str | None = None  # of the encoder: a timm file, "imagenet" (download), or none
    # finished run of the same student that this one begins from, runs/NAME, in place of `weights`
    begin: str | None = None

    def prefetch(self) -> None:
        """Download the encoder's weights, where wanted; on one rank before the others build."""
        if self._first_weights == "imagenet":
            prefetch(self.encoder)

    @property
    def _first_weights(self) -> str | None:
        return self.weights if self.begin is None else None

    def build(self) -> Network:
        """Return the network; UserError when its encoder's weights do not fit or cannot be had."""
        weights = self._first_weights
        if weights == "imagenet":
            own = {field.name: getattr(self, field.name) for field in fields(SmpFields)}
            return SmpNetwork(**own, encoder_weights="imagenet")
        network = build_network(self.architecture())
        if weights is not None:
            assert isinstance(network, SmpNetwork)
            unused = load_encoder_weights(network, weights)
            _log.info("%s: not used by the encoder: %s", weights, ", ".join(unused))
        return network


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionStudent(RegionFields):
    """The network of one box of a picture: background, its own instance, others."""

    weights: str | None = None  # of the encoder: a timm file, "imagenet" (download), or none
    unet: str | None = None  # weights of the whole U-Net, a file, in place of `weights`
    # finished run of the same student that this one begins from, runs/NAME, in place of both
    begin: str | None = None

    def prefetch(self) -> None:
        """Download the encoder's weights, where wanted; on one rank before the others build."""
        if self.weights == "imagenet" and self.unet is None and self.begin is None:
            prefetch(self.encoder)

    def build(self) -> Network:
        """Return the network; UserError when its U-Net's weights do not fit or cannot be had."""
        is_first = self.begin is None and self.unet is None
        if is_first and self.weights == "imagenet":
            own = {field.name: getattr(self, field.name) for field in fields(RegionFields)}
            return RegionNetwork(**own, encoder_weights="imagenet")
        network = build_network(self.architecture())
        assert isinstance(network, RegionNetwork)
        if is_first and self.weights is not None:
            load_encoder_weights(network.unet, self.weights)
        if self.begin is None and self.unet is not None:
            network.report = load_weights(network.unet, self.unet)
        return network


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetStudent(UNetFields):
    """The small U-Net of our own."""

    # finished run of the same student that this one begins from, runs/NAME; None = first weights
    begin: str | None = None

    def prefetch(self) -> None:
        """Download nothing: this network starts from random weights."""

    def build(self) -> Network:
        """Return the network with random weights."""
        return build_network(self.architecture())


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryUNetStudent(BinaryUNetFields):
    """The binary U-Net of any width, for grey or coloured pictures."""

    # finished run of the same student that this one begins from, runs/NAME; None = first weights
    begin: str | None = None

    def prefetch(self) -> None:
        """Download nothing: this network starts from random weights."""

    def build(self) -> Network:
        """Return the network with random weights."""
        return build_network(self.architecture())


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchStudent(TorchFields):
    """Any `nn.Module` of your own; later commands build it again when `--code` names it."""

    # finished run of the same student that this one begins from, runs/NAME; None = first weights
    begin: str | None = None

    def prefetch(self) -> None:
        """Call the factory once, so that what it downloads is there before the others build."""
        load_function(self.factory)()

    def build(self) -> Network:
        """Return the network as the factory makes it; UserError where it is not as described."""
        return build_network(self.architecture(), code=self.factory)
