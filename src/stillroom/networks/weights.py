"""Weights from files: strict, never unpickled, with a report of what did not fit."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.networks.smp import SmpNetwork
from stillroom.tensorfile import map_tensors

_SHOWN = 5  # names in a message


def load_weights(network: nn.Module, path: Path | str) -> None:
    """Load a whole network strictly.

    Takes safetensors, and torch files that hold a state dict, bare or under `state_dict` or
    `model_state_dict`. A leading `model.` is dropped from names that the network does not have.
    UserError lists what is missing, unexpected or of another shape.
    """
    own = network.state_dict()
    read = _read(Path(path)).items()
    state = {n if n in own else n.removeprefix("model."): value for n, value in read}
    _require_equal(own, state, Path(path))
    network.load_state_dict(state)


def load_encoder_weights(network: SmpNetwork, path: Path | str) -> tuple[str, ...]:
    """Load a timm classifier's weights into the encoder; return the names that it does not use.

    Those are the classifier and what lies between the last feature and it (`conv_head.*`, `bn2.*`).
    A name that the encoder has and the file has not, or another shape, is a UserError. timm writes
    `stages.0` of some networks as `stages_0` in a feature extractor; both fit.
    """
    return load_trunk(getattr(network.encoder, "model", network.encoder), path)


def load_trunk(trunk: nn.Module, path: Path | str) -> tuple[str, ...]:
    """Load a timm classifier's weights into what is left of it without its head; as above."""
    own: dict[str, Tensor] = trunk.state_dict()
    read = _read(Path(path))
    found = {name.replace(".", "_"): (name, value) for name, value in read.items()}
    used = {name: found[name.replace(".", "_")] for name in own if name.replace(".", "_") in found}
    state = {name: value for name, (_, value) in used.items()}
    _require_equal(own, state, Path(path))
    trunk.load_state_dict(state)
    taken = {name for name, _ in used.values()}
    return tuple(name for name, _ in found.values() if name not in taken)


def _read(path: Path) -> dict[str, Tensor]:
    """Return the state dict that a file holds; nothing in it is executed or imported."""
    if not path.is_file():
        raise UserError("there is no such weights file", found=str(path))
    try:
        if path.suffix == ".safetensors":
            state: Any = map_tensors(path, links=True)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no type of its own for what it refuses
        raise UserError(
            f"{path} cannot be read as weights",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            wanted="safetensors, or a torch file that loads with weights_only=True",
        ) from error
    for name in ("state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    items = state.items() if isinstance(state, dict) else [(None, state)]
    if not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in items):
        raise UserError(f"{path} holds no state dict", wanted="names and tensors, and nothing else")
    return dict(state)


def _require_equal(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    """Raise UserError unless both have the same names and shapes."""
    shapes = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the network"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    faults = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": shapes,
    }
    if any(faults.values()):
        matched = len(own) - len(faults["missing"]) - len(shapes)
        raise UserError(
            f"{path} does not fit the network",
            found="; ".join(f"{len(v)} {k}: {_few(v)}" for k, v in faults.items() if v),
            wanted=f"all {len(own)} tensors of the network ({matched} fit)",
            fix="check architecture, encoder string, classes and decoder channels",
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
