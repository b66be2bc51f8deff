"""Checkpoints that appear whole and say what they are: safetensors and JSON, no pickle, no rank,
no worker.

A folder `checkpoints/step-000400/` is written aside, flushed and renamed; older ones are pruned
afterwards, never before.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import file_sha256, read_json, sync_folder, write_json

FORMAT = "stillroom checkpoint 1"
_TENSORS = ("model.safetensors", "optimizer.safetensors")


def save_checkpoint(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> Path:
    """Write `checkpoints/step-NNNNNN` whole, then prune all but the newest `keep`; `state` holds
    `step`.
    """
    folder = run / "checkpoints" / f"step-{state['step']:06d}"
    aside = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _save(aside / _TENSORS[0], model.state_dict())
    _save(aside / _TENSORS[1], _optimizer_tensors(optimizer))
    hashes = {name: file_sha256(aside / name) for name in _TENSORS}
    write_json(aside / "state.json", {"format": FORMAT, "files": hashes, **state})
    replace_folder(aside, folder)
    earlier = [old for old in _folders(run) if _step_of(old) <= state["step"]]
    for old in _folders(run):  # a later one was damaged, or the run would not have come here again
        if old not in earlier[-keep:]:
            shutil.rmtree(old)
    return folder


def newest_checkpoint(run: Path, say: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]]:
    """Return the newest checkpoint that verifies, and its state.

    Raises UserError where there is none, DamageError where all are damaged.
    """
    problems = []
    for folder in reversed(_folders(run)):
        try:
            return folder, _verified(folder)
        except (DamageError, FileNotFoundError) as error:
            problems.append(str(error))
            say(f"warning: {folder} is damaged and passed over: {error}")
    if problems:
        raise DamageError(f"no checkpoint of {run} can be read", found=problems[0])
    raise UserError(
        f"{run} has no checkpoint to resume from", fix="start again with --run.overwrite"
    )


def _verified(folder: Path) -> dict[str, Any]:
    state = read_json(folder / "state.json")
    for name in _TENSORS:
        found = file_sha256(folder / name)
        if found != state["files"].get(name):
            raise DamageError(
                f"{folder / name} is damaged", found=found, wanted=state["files"].get(name)
            )
    return state


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the tensors of a verified checkpoint into a model and its optimiser."""
    model.load_state_dict(load_file(folder / _TENSORS[0]))
    body = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / _TENSORS[1]).items():
        number, field = name.split(".", 1)
        state.setdefault(int(number), {})[field] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": body["param_groups"]})


def save_student(
    folder: Path, student: nn.Module, about: dict[str, Any], sync: bool = True
) -> None:
    """Write `student.safetensors` and `student.json`, which names the weights' sha256, into a
    fresh folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".student.safetensors.tmp"
    _save(aside, student.state_dict())
    sha256 = file_sha256(aside)
    aside.replace(folder / "student.safetensors")
    write_json(folder / "student.json", {**about, "weights_sha256": sha256})
    if sync:
        sync_folder(folder)


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
    sync_folder(aside)
    if folder.exists():
        old = folder.parent / f".{folder.name}.{os.getpid()}.old"
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old)
    else:
        aside.rename(folder)
    sync_folder(folder.parent)


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{field}": torch.as_tensor(value)
        for number, fields in state.items()
        for field, value in fields.items()
    }


def _folders(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    folders = (path for path in (run / "checkpoints").glob("step-*") if path.is_dir())
    return sorted(folders, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
