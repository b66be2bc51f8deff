"""What a run says it is: the line at its start, what belongs to the student's weights, the receipt
at its end.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stillroom
from stillroom.training.session import Session

_TEACHER_MODULES = ("onnx", "onnxruntime", "stillroom.teachers.onnx", "stillroom.teachers.torch")


def describe(session: Session) -> str:
    """Return what is about to be trained on what, in a line or two."""
    recipe = session.recipe
    total = _count(session.distiller.student.parameters())
    thrown = _count(session.distiller.projections.parameters())
    extra = f" (+ {_short(thrown)} in projections that are thrown away)" if thrown else ""
    text = (
        f"run {session.folder}: {_short(total)} parameters{extra},"
        f" {len(session.source)} rows, {session.steps} steps of {recipe.batch}"
        f" in micro-batches of {recipe.micro_batch} on {session.deal.world} x"
        f" {session.accelerator.device.type} ({session.accelerator.mixed_precision})"
    )
    every = sum(shard.rows for shard in session.pictures.shards if shard.split == "train")
    if len(session.source) < every:
        left = every - len(session.source)
        text += f"\n{left} of {every} training pictures have no label that is used and are left out"
    return text


def about_student(session: Session, step: int, found: dict[str, Any]) -> dict[str, Any]:
    """Return what student.json says besides the weights' checksum: all that is needed to build and
    use the student.
    """
    recipe, pictures = session.recipe, session.pictures
    assert pictures.geometry is not None
    return {
        "format": "stillroom student 1",
        "recipe": recipe.name,
        "network": recipe.student.architecture(),
        "classes": list(pictures.classes),
        "palette": [list(colour) for colour in pictures.palette],
        "geometry": {"height": pictures.geometry[0], "width": pictures.geometry[1]},
        "pictures": {"path": str(Path(recipe.data.shards)), "digest": pictures.digest},
        "batch": recipe.micro_batch,
        "step": step,
        "score": {name: found.get(name) for name in ("miou", "iou", "agreement", "teacher_miou")},
    }


def receipt(session: Session, seconds: float, substituted: int) -> dict[str, Any]:
    """Return what was read, by what, in how long; `teacher_modules` is empty where the stages
    stayed apart.
    """
    cache = session.cache
    return {
        "cache": None
        if cache is None
        else {"name": cache.path.name, "fingerprint": cache.fingerprint},
        "device": str(session.accelerator.device),
        "parameters": _count(session.distiller.student.parameters()),
        "pictures": session.pictures.digest,
        "precision": session.accelerator.mixed_precision,
        "processes": session.deal.world,
        "seconds": round(seconds, 1),
        "seed": session.recipe.seed,
        "steps": session.steps,
        "substituted_rows": substituted,  # over all ranks, since the run was last started
        "teacher_modules": [name for name in _TEACHER_MODULES if name in sys.modules],
        "versions": {"stillroom": stillroom.__version__, "torch": str(torch.__version__)},
    }


def _short(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number / 1e3:.1f} k"


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
