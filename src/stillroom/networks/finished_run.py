"""The student of a finished run: what `student.json` says of it, and its weights, checked.

Both come from a folder that may be anybody's. The weights' sha256 is compared before they are used,
and a network is built only as large as the weights are.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from stillroom.errors import DamageError, StillroomError
from stillroom.jsonfile import file_sha256, read_json
from stillroom.networks.build import Network, build_network, load_weights
from stillroom.tensorfile import map_tensors

DESCRIPTION, WEIGHTS = "student.json", "student.safetensors"
_MAX_BYTES = 1 << 30  # of the weights: 268 million parameters


def read_run(run: Path) -> dict[str, Any]:
    """Return `student.json`, having found that the weights beside it are those that it names.

    Raises FileNotFoundError, and DamageError where the files are not what a run of ours writes.
    """
    about, path = read_json(run / DESCRIPTION), run / WEIGHTS
    if not isinstance(about.get("network"), dict):
        raise DamageError(f"{run / DESCRIPTION} names no network", found=f"{about!r:.80}")
    map_tensors(path, _MAX_BYTES)  # what is no such file need not be hashed
    found, wanted = file_sha256(path), about.get("weights_sha256")
    if found != wanted:
        raise DamageError(f"{path} is not what student.json names", found=found, wanted=wanted)
    return about


def load_run(run: Path, code: str | None = None) -> tuple[Network, dict[str, Any]]:
    """Return a run's student with its weights, and `student.json`; errors as `read_run`.

    `code` names the function that builds a network of the user's own, path/to/file.py:function.
    """
    about, path = read_run(run), run / WEIGHTS
    num_stored = sum(value.numel() for value in map_tensors(path, _MAX_BYTES).values())
    try:
        if code is None:
            _check_size(about["network"], num_stored)
        network = build_network(about["network"], code)
    except StillroomError:
        raise
    except Exception as error:  # torch and smp refuse impossible sizes, each in its own way
        raise DamageError(
            f"{run / DESCRIPTION} describes a network that cannot be built",
            found=f"{type(error).__name__}: {error}"[:300],
        ) from None
    load_weights(network, path)
    return network, about


def _check_size(architecture: dict[str, Any], num_stored: int) -> None:
    """Refuse a network with more parameters than the file has values, before any is allocated.

    It is built without memory first; what cannot be (MiT computes while it is built) is stopped at
    its first parameter too many. Not all can be counted so: timm's encoders are built with a head
    that they drop.
    """
    try:
        with torch.device("meta"):
            network = build_network(architecture)
    except (StillroomError, NotImplementedError, RuntimeError):
        with _at_most(num_stored):
            network = build_network(architecture)
    _require(sum(value.numel() for value in network.parameters()), num_stored)


def _require(num_parameters: int, num_stored: int) -> None:
    if num_parameters > num_stored:
        raise DamageError(
            "a run's network has more parameters than its weights",
            found=num_parameters,
            wanted=f"at most {num_stored}",
        )


@contextmanager
def _at_most(num_parameters: int) -> Iterator[None]:
    """Refuse, before they are filled, parameters for which the file has no values."""
    total, here = 0, threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        if threading.get_ident() != here:
            return  # torch calls the hook in every thread
        total += 0 if parameter is None else parameter.numel()
        _require(total, num_parameters)

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
