"""Weights from files: never unpickled; strict, or as far as they fit, which is then reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.networks.smp import SmpNetwork
from stillroom.tensorfile import map_tensors

_SHOWN = 5  # names in a message
_PREFIXES = ("backbone.", "features.", "")  # torchvision's, of the trunk of a network
_COUNTER = ".num_batches_tracked"  # of BatchNorm: old files lack it, and nothing depends on it


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Which tensors of a file went into a network; its text names the first of each."""

    source: str
    matched: tuple[str, ...]  # names of the network
    unmatched: tuple[str, ...]  # names of the network: not in the file, or of another shape there
    unused: tuple[str, ...]  # names of the file

    def __str__(self) -> str:
        total = len(self.matched) + len(self.unmatched)
        return "; ".join(
            f"{text}{': ' * bool(names)}{_few(list(names))}"
            for text, names in (
                (f"{self.source}: {len(self.matched)} of {total} tensors matched", self.matched),
                (f"{len(self.unmatched)} keep their first values", self.unmatched),
                (f"{len(self.unused)} of the file are not used", self.unused),
            )
        )


def load_weights(network: nn.Module, path: Path | str) -> str:
    """Load a whole network strictly; return the line that says what stood before its names, or "".

    Takes safetensors, and torch files that hold a state dict, bare or under `state_dict` or
    `model_state_dict`. A prefix that every name of the file has (Lightning's `model.`, DDP's
    `module.`) is dropped. UserError lists what is missing, unexpected or of another shape.
    """
    return load_state(network, read_weights(path), path)


def load_state(network: nn.Module, read: Mapping[str, Tensor], source: Path | str) -> str:
    """Load a whole network strictly, as above; `source` is for the messages only."""
    own = network.state_dict()
    prefix = _prefix(own, read)
    state = {n.removeprefix(prefix): value for n, value in read.items() if n.startswith(prefix)}
    others = [name for name in read if not name.startswith(prefix)]
    _require_equal(own, state, source, others)
    network.load_state_dict(state)
    return f"{source}: {prefix!r} before each of {len(state)} names was dropped" if prefix else ""


def _prefix(own: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> str:
    """Return what stands before the network's names in a file: "", or words that end in a dot."""
    first = next(iter(own), "")
    found = [name.removesuffix(first) for name in read if name.endswith(f".{first}")]
    return max(["", *found], key=lambda prefix: sum(prefix + name in read for name in own))


def load_part(
    network: nn.Module, part: str, state: Mapping[str, Tensor], source: Path | str
) -> tuple[str, ...]:
    """Load the module `part` of a network strictly; return the names that it does not use.

    In `state` its names stand behind `part`, or as in torchvision's files. `source` is for the
    message only. UserError for a name that is missing or of another shape.
    """
    own = network.get_submodule(part).state_dict()
    names = _names_of_part(own, part, state)
    found = {name: state[names[name]] for name in own if name in names}
    _require_equal(own, found, source)
    network.get_submodule(part).load_state_dict(found)
    return tuple(name for name in state if name not in names.values())


def load_matching(network: nn.Module, part: str, path: Path | str) -> LoadReport:
    """Load every tensor of a file that a network has by name and shape, and say which.

    Names are those of the whole network, but of the module `part` (may be empty) also those of
    torchvision's files. UserError where nothing fits.
    """
    own, state = network.state_dict(), read_weights(path)
    inner = network.get_submodule(part).state_dict() if part else {}
    names = {f"{part}.{name}": n for name, n in _names_of_part(inner, part, state).items()}
    names |= {name: name for name in own if name in state}
    found = {
        n: state[names[n]] for n in own if n in names and state[names[n]].shape == own[n].shape
    }
    if not found:
        raise UserError(f"nothing in {path} fits the network", wanted=_few(list(own)))
    network.load_state_dict(found, strict=False)
    used = {names[name] for name in found}
    return LoadReport(
        source=str(path),
        matched=tuple(found),
        unmatched=tuple(name for name in own if name not in found),
        unused=tuple(name for name in state if name not in used),
    )


def _names_of_part(
    own: Mapping[str, Tensor], part: str, state: Mapping[str, Tensor]
) -> dict[str, str]:
    """Return the name in a file of each tensor of a part: the way of writing that most follow."""
    ways = [
        {name: prefix + name for name in own if prefix + name in state}
        for prefix in (f"{part}.", *_PREFIXES)
    ]
    return max(ways, key=len)


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
    read = read_weights(path)
    found = {name.replace(".", "_"): (name, value) for name, value in read.items()}
    used = {name: found[name.replace(".", "_")] for name in own if name.replace(".", "_") in found}
    state = {name: value for name, (_, value) in used.items()}
    _require_equal(own, state, path)
    trunk.load_state_dict(state)
    taken = {name for name, _ in used.values()}
    return tuple(name for name, _ in found.values() if name not in taken)


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Return the state dict that a file holds; nothing in it is executed or imported.

    UserError where there is no such file, or where it holds something else.
    """
    path = Path(path)
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
            fix="of a trainer's checkpoint keep the state dict alone: where it was trained,"
            " torch.save({'state_dict': torch.load(FILE, weights_only=False)['state_dict']}, NEW)",
        ) from error
    for name in ("state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    items = state.items() if isinstance(state, dict) else [(None, state)]
    if not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in items):
        raise UserError(f"{path} holds no state dict", wanted="names and tensors, and nothing else")
    return dict(state)


def _require_equal(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    source: Path | str,
    others: Sequence[str] = (),
) -> None:
    """Raise UserError unless both have the same names and shapes; BatchNorm's counter may lack.

    `others` are names of the file besides `state`.
    """
    shapes = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the network"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    faults = {
        "missing": [name for name in own if name not in state and not name.endswith(_COUNTER)],
        "unexpected": [*(name for name in state if name not in own), *others],
        "of another shape": shapes,
    }
    if any(faults.values()):
        matched = len(own) - len(faults["missing"]) - len(shapes)
        raise UserError(
            f"{source} does not fit the network",
            found="; ".join(f"{len(v)} {k}: {_few(v)}" for k, v in faults.items() if v),
            wanted=f"all {len(own)} tensors of the network ({matched} fit)",
            fix="check architecture, encoder or backbone, classes and decoder channels",
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
