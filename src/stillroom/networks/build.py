"""A network from its plain JSON description, as `student.json` and identities record it."""

import re
from typing import Any

from stillroom.errors import UserError
from stillroom.networks.smp import SmpNetwork
from stillroom.networks.taps import Network
from stillroom.networks.torch_network import build_torch
from stillroom.networks.unet import UNet
from stillroom.networks.weights import load_encoder_weights, load_weights

__all__ = ["NETWORKS", "Network", "build_network", "load_encoder_weights", "load_weights"]

_PLAIN = re.compile(r"[A-Za-z0-9_.+-]{1,80}")
_LARGEST = 1 << 16  # of every number in a description

NETWORKS: dict[str, type[Network]] = {"smp": SmpNetwork, "unet": UNet}


def build_network(architecture: dict[str, Any], code: str | None = None) -> Network:
    """Build a network with random weights.

    `architecture` is `{"name": "smp", "arch", "encoder", "classes", "mean", "std",
    "decoder_channels"}` or `{"name": "unet", "width", "depth", "classes", "mean", "std"}`.
    That of a `TorchNetwork` names a function of the user's, which is called only where `code` names
    it (again). UserError for an unknown name or a wrong field.
    """
    name = architecture.get("name")
    if name == "torch":
        return build_torch(architecture, code)
    if not isinstance(name, str) or name not in NETWORKS:
        raise UserError("no such network", found=name, wanted="one of " + ", ".join(NETWORKS))
    found = {field: value for field, value in architecture.items() if field != "name"}
    readers = _FIELDS[name]
    if set(found) != set(readers):
        raise UserError(
            f"the description of this {name} network has the wrong fields",
            found=", ".join(sorted(found)),
            wanted=", ".join(sorted(readers)),
        )
    return NETWORKS[name](**{field: readers[field](field, found[field]) for field in readers})


def _text(field: str, value: Any) -> str:
    # timm takes `hf-hub:USER/NAME` for a name too, and fetches it
    is_plain = isinstance(value, str) and _PLAIN.fullmatch(value) is not None
    return value if is_plain else _refuse(field, value, "a plain name: letters, digits, _ . + -")


def _number(field: str, value: Any) -> int:
    is_count = type(value) is int and 0 < value <= _LARGEST
    return value if is_count else _refuse(field, value, f"a whole number from 1 to {_LARGEST}")


def _three(field: str, value: Any) -> tuple[float, ...]:
    is_list = isinstance(value, list | tuple) and len(value) == 3
    if is_list and all(type(v) in (int, float) and abs(v) <= _LARGEST for v in value):
        return tuple(float(v) for v in value)
    return _refuse(field, value, "three numbers")


def _numbers(field: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        return _refuse(field, value, "a list of whole numbers, or null")
    return tuple(_number(field, v) for v in value)


def _refuse(field: str, value: Any, wanted: str) -> Any:
    raise UserError(f"{field} of a network's description is wrong", found=value, wanted=wanted)


# What each description holds besides its name, and how a JSON value becomes an argument.
_FIELDS: dict[str, dict[str, Any]] = {
    "smp": {
        "arch": _text,
        "encoder": _text,
        "classes": _number,
        "mean": _three,
        "std": _three,
        "decoder_channels": _numbers,
    },
    "unet": {"width": _number, "depth": _number, "classes": _number, "mean": _three, "std": _three},
}
