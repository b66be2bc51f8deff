"""A network from its plain JSON description, as `student.json` and identities record it."""

from typing import Annotated, Any

import msgspec

from stillroom.errors import UserError
from stillroom.jsonfile import Declared
from stillroom.networks.smp import SmpNetwork
from stillroom.networks.unet import UNet
from stillroom.networks.weights import load_encoder_weights, load_weights

__all__ = [
    "Network",
    "SmpDescription",
    "UNetDescription",
    "build_network",
    "load_encoder_weights",
    "load_weights",
]

Network = SmpNetwork | UNet

# timm takes `hf-hub:USER/NAME` for a name too, and fetches it
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.+-]{1,80}\Z")]
_Classes = Annotated[int, msgspec.Meta(ge=1, le=4096)]
_Width = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_Depth = Annotated[int, msgspec.Meta(ge=1, le=16)]
_Level = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
_Three = tuple[_Level, _Level, _Level]


class SmpDescription(Declared, frozen=True, tag_field="name", tag="smp"):
    """A network of smp, without weights."""

    arch: _Name
    encoder: _Name
    classes: _Classes
    mean: _Three
    std: _Three
    decoder_channels: Annotated[tuple[_Width, ...], msgspec.Meta(max_length=8)] | None


class UNetDescription(Declared, frozen=True, tag_field="name", tag="unet"):
    """The small U-Net of our own, without weights."""

    width: _Width
    depth: _Depth
    classes: _Classes
    mean: _Three
    std: _Three


def build_network(architecture: dict[str, Any]) -> Network:
    """Build a network with random weights from the members of a description above.

    Raises UserError for an unknown name or a wrong member.
    """
    try:
        description = msgspec.convert(architecture, SmpDescription | UNetDescription)
    except msgspec.ValidationError as error:
        raise UserError("a network's description is wrong", found=error) from None
    network = SmpNetwork if isinstance(description, SmpDescription) else UNet
    return network(**msgspec.structs.asdict(description))
