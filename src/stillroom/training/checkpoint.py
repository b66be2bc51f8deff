"""Checkpoints that appear whole and say what they are: safetensors and JSON, no pickle, no rank, no
worker.

A folder `checkpoints/step-000400/` is written aside, flushed and renamed; older ones are pruned
afterwards, never before.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import torch
from safetensors.torch import save
from torch import Tensor, nn

from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import (
    Count,
    Sha256,
    file_sha256,
    read_json,
    rename,
    sync_folder,
    write_bytes,
    write_json,
)
from stillroom.tensorfile import map_tensors
from stillroom.training.average import Average
from stillroom.training.evaluations import Evaluation

FORMAT = "stillroom checkpoint 2"
_TENSORS = ("model.safetensors", "optimizer.safetensors")
_AVERAGE = "average.safetensors"  # where the run keeps one
_NAME = re.compile(r"step-([0-9]{6,12})")


class CheckpointState(TypedDict):
    """What `state.json` holds; `scaler` is GradScaler's state."""

    format: Literal["stillroom checkpoint 2"]
    step: Count
    epochs: Count  # of the whole run, as it was meant when this was saved
    evaluations: list[Evaluation]
    class_weights: NotRequired[dict[str, list[float | None]]]  # running ones of terms, by head
    scaler: NotRequired[dict[str, Any] | None]
    files: dict[str, Sha256]


def save_checkpoint(
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    average: Average | None = None,
) -> Path:
    """Write `checkpoints/step-NNNNNN` whole, then prune all but the newest `keep`; `state` holds
    what `CheckpointState` does, but for format and files.
    """
    folder = _folder(run, state["step"])
    aside = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    moments = _optimizer_tensors(optimizer, model)
    files: list[tuple[str, Mapping[str, Tensor]]]
    files = [*zip(_TENSORS, (model.state_dict(), moments), strict=True)]
    if average is not None:
        files.append((_AVERAGE, average.state_dict()))
    hashes = {name: _save(aside / name, tensors) for name, tensors in files}
    write_json(aside / "state.json", {"format": FORMAT, "files": hashes, **state})
    replace_folder(aside, folder)
    earlier = [old for old in _folders(run) if _step_of(old) <= state["step"]]
    for old in _folders(run):  # a later one was damaged, or the run would not have come here again
        if old not in earlier[-keep:]:
            shutil.rmtree(old)
    return folder


def newest_checkpoint(
    run: Path, print: Callable[[str], None] = print
) -> tuple[Path, dict[str, Any]]:
    """Return the newest checkpoint that verifies, and its state.

    Raises UserError where there is none, DamageError where all are damaged.
    """
    problems = []
    for folder in reversed(_folders(run)):
        try:
            return folder, _verified(folder)
        except (DamageError, FileNotFoundError) as error:
            problems.append(str(error))
            print(f"warning: {folder} is damaged and passed over: {error}")
    if problems:
        raise DamageError(f"no checkpoint of {run} can be read", found=problems[0])
    raise UserError(
        f"{run} has no checkpoint to resume from", fix="start again with --run.overwrite"
    )


def read_checkpoint(run: Path, step: int) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint of a step and its state; raises DamageError where it does not verify
    or is not there.
    """
    folder = _folder(run, step)
    try:
        return folder, _verified(folder)
    except FileNotFoundError as error:
        raise DamageError(
            f"{folder} cannot be read, though another process of this run read it",
            found=error,
            fix="see that every machine has the same --run.out; then the same command again",
        ) from None


def _verified(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    state = read_json(path, CheckpointState)
    if (found := state["step"]) != _step_of(folder):
        raise DamageError(f"{path} is of another step", found=found, wanted=_step_of(folder))
    hashes = state["files"]
    for name in (*_TENSORS, *({_AVERAGE} & hashes.keys())):
        if (found := file_sha256(folder / name)) != hashes.get(name):
            raise DamageError(f"{folder / name} is damaged", found=found, wanted=hashes.get(name))
    return state


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None = None,
) -> None:
    """Put the tensors of a verified checkpoint into a model, its optimiser and its average.

    A parameter of which the checkpoint has no moments (it was frozen) keeps none. Raises
    DamageError where the tensors are not theirs.
    """
    tensors, moments = (map_tensors(folder / name) for name in _TENSORS)
    parameters = dict(model.named_parameters())
    numbers = {name: number for number, name in _optimized(optimizer, model).items()}
    state: dict[int, dict[str, Tensor]] = {}
    try:
        for name, tensor in moments.items():
            parameter, _, field = name.rpartition(".")
            place = state.setdefault(numbers[parameter], {})
            place[field] = _laid_as(parameters[parameter], tensor)
        model.load_state_dict(tensors)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        if average is not None:
            average.load_state_dict(map_tensors(folder / _AVERAGE))
    except (KeyError, ValueError, RuntimeError, FileNotFoundError) as error:
        raise DamageError(f"{folder} is not of this model", found=f"{error!s:.300}") from None


def save_student(folder: Path, student: nn.Module, about: dict[str, Any]) -> None:
    """Write `student.safetensors` and `student.json`, which names the weights' sha256, into a fresh
    folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = _save(folder / "student.safetensors", student.state_dict())
    write_json(folder / "student.json", {**about, "weights_sha256": sha256})


def save_best(run: Path, student: nn.Module, about: dict[str, Any]) -> None:
    """Replace `best/` as a whole."""
    aside = run / f".best.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    save_student(aside, student, about)
    replace_folder(aside, run / "best")


def clear_leftovers(run: Path) -> None:
    """Remove what a killed process left aside; a `best/` that it had moved away comes back."""
    for old in run.glob(".best.*.old"):
        if not (run / "best").exists():
            old.rename(run / "best")
    for pattern in (".best.*.tmp", ".best.*.old", "checkpoints/.step-*.*"):
        for leftover in run.glob(pattern):
            shutil.rmtree(leftover)


def replace_folder(aside: Path, folder: Path) -> None:
    """Rename a finished folder into place; an older one of that name gives way at the last moment.

    A kill between the two renames leaves neither: `clear_leftovers` puts the older one back.
    """
    if folder.exists():
        old = folder.parent / f".{folder.name}.{os.getpid()}.old"
        shutil.rmtree(old, ignore_errors=True)
        rename(folder, old)
        rename(aside, folder)
        shutil.rmtree(old)
    else:
        rename(aside, folder)
    sync_folder(folder.parent)


def _save(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file, durable; return its sha256 (hex)."""
    data = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def _optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    state, names = optimizer.state_dict()["state"], _optimized(optimizer, model)
    return {
        f"{names[number]}.{field}": torch.as_tensor(value)
        for number, fields in state.items()
        for field, value in fields.items()
    }


def _laid_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return a moment in the memory format of its parameter, which a fused optimiser asks for."""
    if tensor.shape != parameter.shape:
        return tensor
    return torch.empty_like(parameter, device=tensor.device, dtype=tensor.dtype).copy_(tensor)


def _optimized(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[int, str]:
    """Return each parameter's name by torch's number for it; a name outlives another freezing."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return {number: names[id(parameter)] for number, parameter in enumerate(parameters)}


def _folders(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    folders = (path for path in (run / "checkpoints").glob("step-*") if path.is_dir())
    return sorted((path for path in folders if _NAME.fullmatch(path.name)), key=_step_of)


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
