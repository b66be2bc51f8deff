"""A network from its plain JSON description, as `student.json` and identities record it."""

from dataclasses import fields
from typing import Any

from stillroom.networks.backbone_unet import BackboneUNet, BackboneUNetFields
from stillroom.networks.binary_unet import BinaryUNet, BinaryUNetFields
from stillroom.networks.deeplab_lite import DeepLabLite, DeepLabLiteFields
from stillroom.networks.description import read_description
from stillroom.networks.fastlite import FastLite, FastLiteFields
from stillroom.networks.fcn import Fcn, FcnFields
from stillroom.networks.region import RegionFields, RegionNetwork
from stillroom.networks.smp import SmpFields, SmpNetwork
from stillroom.networks.taps import Network
from stillroom.networks.torch_network import TorchFields, build_torch
from stillroom.networks.unet import UNet, UNetFields
from stillroom.networks.weights import load_encoder_weights, load_weights

__all__ = ["Network", "build_network", "load_encoder_weights", "load_weights"]

_NETWORKS: dict[type, type[Network]] = {
    SmpFields: SmpNetwork,
    UNetFields: UNet,
    BackboneUNetFields: BackboneUNet,
    BinaryUNetFields: BinaryUNet,
    DeepLabLiteFields: DeepLabLite,
    FastLiteFields: FastLite,
    FcnFields: Fcn,
    RegionFields: RegionNetwork,
}
_KINDS: dict[str, type] = {
    "smp": SmpFields,
    "unet": UNetFields,
    "torch": TorchFields,
    "backbone-unet": BackboneUNetFields,
    "binary-unet": BinaryUNetFields,
    "deeplab-lite": DeepLabLiteFields,
    "fastlite": FastLiteFields,
    "fcn": FcnFields,
    "region": RegionFields,
}


def build_network(architecture: dict[str, Any], code: str | None = None) -> Network:
    """Build a network with random weights from `name` and the fields of the class above.

    A `TorchNetwork` is built by the user's own function, and only where `code` names it (again).
    UserError for an unknown name or a wrong field.
    """
    about = read_description(architecture, _KINDS)
    if isinstance(about, TorchFields):
        return build_torch(about, code)
    network = _NETWORKS[type(about)]
    return network(**{field.name: getattr(about, field.name) for field in fields(about)})
