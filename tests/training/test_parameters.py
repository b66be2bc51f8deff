"""Parts of the student train one after another, and nothing that the optimiser knows is lost."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stillroom.training.loop as loop
from stillroom.errors import UserError
from stillroom.recipe import Recipe
from stillroom.recipe_optimizer import SGD
from stillroom.training.parameters import num_freed, set_mode
from stillroom.training.setup import prepare

pytestmark = pytest.mark.usefixtures("undrawn")

DEEPEST_FIRST = ("encoder.2", "encoder.1", "encoder")


def staged(recipe: Recipe, **changes: object) -> Recipe:
    """Free from epoch 1 on one block an epoch; three steps an epoch."""
    recipe = replace(recipe, freeze=DEEPEST_FIRST, freeze_epochs=1, unfreeze_every=1, epochs=4)
    return replace(recipe, run=replace(recipe.run, keep=9), **changes)


def tensors(run: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / f"{name}.safetensors")


def moved(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> set[str]:
    """The parts of the student of which every tensor has moved; the others have kept still."""
    parts: dict[str, list[bool]] = {}
    for name, tensor in old.items():
        if name.startswith("student.encoder."):
            part = ".".join(name.split(".")[1:3])
            parts.setdefault(part, []).append(not torch.equal(tensor, new[name]))
    assert all(all(values) or not any(values) for values in parts.values())
    return {part for part, values in parts.items() if all(values)}


@pytest.mark.parametrize(
    ("epochs", "every", "freed"),
    [
        (None, None, [0] * 11),
        (2, None, [0, 0, *[3] * 9]),
        (1, 3, [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]),
    ],
)
def test_parts_are_freed_from_an_epoch_on(tiny_recipe, epochs, every, freed):
    recipe = staged(tiny_recipe, freeze_epochs=epochs, unfreeze_every=every)
    assert [num_freed(recipe, epoch) for epoch in range(11)] == freed


def test_blocks_are_freed_deepest_first_weights_and_running_buffers_together(tiny_recipe):
    recipe = staged(tiny_recipe)
    start = {n: t.clone() for n, t in prepare(recipe).distiller.state_dict().items()}
    run = loop.train(recipe)
    steps = [start, *(tensors(run, step) for step in (3, 6, 9, 12))]
    found = [moved(old, new) for old, new in pairwise(steps)]
    first, second, third = "encoder.2", "encoder.1", "encoder.0"
    assert found == [set(), {first}, {first, second}, {first, second, third}]
    counts = {n: int(t) for n, t in tensors(run, 12, "optimizer").items() if n.endswith(".step")}
    by_part = {"encoder.0": 3, "encoder.1": 6, "encoder.2": 9, "decoder.0": 12, "projections": 12}
    for part, wanted in by_part.items():
        assert {n for name, n in counts.items() if part in name} == {wanted}, part


def test_what_is_frozen_is_in_evaluation_mode_module_by_module(tiny_recipe):
    context = prepare(staged(tiny_recipe))
    student, recipe = context.distiller.student, context.recipe
    for epoch, training in enumerate(([], [2], [2, 1], [2, 1, 0])):
        set_mode(context.model, context.distiller, recipe, epoch)
        for block in range(3):
            modes = {m.training for m in student.encoder[block].modules()}
            assert modes == {block in training}
        assert all(module.training for module in student.decoder.modules())


def test_a_resume_between_two_blocks_is_exact(tiny_recipe):
    recipe = staged(tiny_recipe, optimizer=SGD(lr=0.05), freeze_lr=0.3)
    run = loop.train(recipe)
    wanted = [
        {n: t.clone() for n, t in tensors(run, 12, n).items()} for n in ("model", "optimizer")
    ]
    for step in (9, 12):
        (run / "checkpoints" / f"step-{step:06d}" / "state.json").unlink()
    loop.train(replace(recipe, run=replace(recipe.run, resume=True)))
    for name, one in zip(("model", "optimizer"), wanted, strict=True):
        two = tensors(run, 12, name)
        assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def test_freed_parts_have_their_own_rate(tiny_recipe):
    context = prepare(staged(tiny_recipe, freeze_lr=0.3))
    found = {
        id(p): group["factor"] for group in context.optimizer.param_groups for p in group["params"]
    }
    for name, parameter in context.distiller.named_parameters():
        assert found[id(parameter)] == (0.3 if "encoder" in name.split(".") else 1.0)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"freeze": ("encoder", "encoder.1")}, r"no part named 'encoder\.1' outside"),
        ({"freeze_epochs": None}, "--unfreeze-every needs"),
        ({"freeze": ()}, "--unfreeze-every needs"),
        ({"unfreeze_every": 0}, "no such --unfreeze-every"),
        ({"freeze_lr": 0.0}, "no such --freeze-lr"),
    ],
)
def test_stages_that_cannot_be_are_refused(tiny_recipe, change, what):
    with pytest.raises(UserError, match=what):
        prepare(staged(tiny_recipe, **change))
