"""What a run says it is: the line at its start, what belongs to the student's weights, the receipt
at its end.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import stillroom
from stillroom.training.context import TrainContext
from stillroom.training.evaluations import Evaluation
from stillroom.training.optimizer import learning_rate

_RUNNERS = ("onnx", "torch", "timm", "target_files")
_TEACHER_MODULES = ("onnx", "onnxruntime", *(f"stillroom.teachers.{name}" for name in _RUNNERS))


def describe(context: TrainContext) -> str:
    """Return what is about to be trained on what, in a line or two."""
    recipe = context.recipe
    total = _count(context.distiller.student.parameters())
    thrown = _count(context.distiller.projections.parameters())
    extra = f" (+ {_short(thrown)} in projections that are thrown away)" if thrown else ""
    views = f" in {recipe.views.count} views" * (recipe.views.count > 1)
    precision = context.accelerator.mixed_precision.replace("no", "fp32")
    text = (
        f"run {context.folder}: {_short(total)} parameters{extra},"
        f" {len(context.dataset)} rows{views}, {context.steps} steps of {recipe.batch}"
        f" in micro-batches of {recipe.micro_batch} on {context.schedule.world} x"
        f" {context.accelerator.device.type} ({precision})"
    )
    if report := context.distiller.student.report:
        text += f"\n{report}"
    if context.begin is not None:
        sha256 = context.begin["weights_sha256"]
        text += f"\nthe student begins from {context.begin['run']} (sha256 {sha256[:12]}...)"
    every = context.num_rows
    if len(context.dataset) < every:
        left = every - len(context.dataset)
        text += f"\n{left} of {every} training rows have no label that is used and are left out"
    return text


def about_more_epochs(
    context: TrainContext, epochs: int, step: int, evaluations: Sequence[Evaluation]
) -> str:
    """Return what more epochs than a run had change about its schedules, in a line or two."""
    recipe = context.recipe
    before = replace(context, recipe=replace(recipe, epochs=epochs))
    last = learning_rate(recipe, before.moment(max(0, step - 1), evaluations))
    now = learning_rate(recipe, context.moment(step, evaluations))
    schedule = type(recipe.schedule).__name__
    how = f"{schedule} does not follow the length of the run"
    if recipe.schedule.follows_length:
        how = f"{schedule} goes on as in a run of {recipe.epochs} epochs, not where it ended"
    return (
        f"{recipe.epochs} epochs instead of {epochs}. Learning rate: {last:.3g} in the last step,"
        f" {now:.3g} in the next ({how}). Temperatures that change follow the length of the run."
    )


# of an evaluation, that student.json repeats
SCORES = ("miou", "iou", "agreement", "teacher_miou", "target_iou")


def about_student(context: TrainContext, step: int, found: dict[str, Any]) -> dict[str, Any]:
    """Return what student.json says besides the weights' checksum: all that is needed to build and
    use the student.
    """
    recipe, pictures = context.recipe, context.pictures
    height, width = recipe.size_of(pictures)
    classes, palette = recipe.classes_of(pictures), recipe.palette_of(pictures)
    return {
        "format": "stillroom student 1",
        "recipe": recipe.name,
        "network": recipe.student.architecture(),
        "classes": list(classes),
        "palette": [list(colour) for colour in palette] if classes else [],
        "geometry": {"height": height, "width": width, "fit": pictures.fit or "stretch"},
        "regions": recipe.data.regions,
        "pictures": {"path": recipe.data.shards.rstrip("/"), "digest": pictures.digest},
        "batch": recipe.micro_batch,
        "step": step,
        "score": {name: found.get(name) for name in SCORES},
    }


def receipt(
    context: TrainContext, step: int, pace: dict[str, float], substituted: int
) -> dict[str, Any]:
    """Return what was read, by what, how fast and in how many steps; `teacher_modules` is empty
    where the stages stayed apart.
    """
    cache = context.cache
    return {
        "begin": context.begin,
        "cache": None
        if cache is None
        else {"name": cache.path.name, "fingerprint": cache.fingerprint},
        "ended_early": step < context.steps,
        "epochs": context.recipe.epochs,
        "device": str(context.accelerator.device),
        "parameters": _count(context.distiller.student.parameters()),
        "pictures": context.pictures.digest,
        "precision": context.accelerator.mixed_precision,
        "processes": context.schedule.world,
        **pace,  # since the run was last started; waiting: share of the time, for rows;
        # read_mb: of training rows, over all ranks, as they are stored
        "seed": context.recipe.seed,
        "steps": step,
        "substituted_rows": substituted,  # over all ranks, since the run was last started
        "teacher_modules": [name for name in _TEACHER_MODULES if name in sys.modules],
        "versions": {"stillroom": stillroom.__version__, "torch": str(torch.__version__)},
    }


def _short(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number / 1e3:.1f} k"


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
