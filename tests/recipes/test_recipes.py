"""Every registered recipe builds its student and terms on what its teachers make, and all of them
learn.
"""

from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.losses import CountsClasses, Term
from stillroom.networks.build import build_network
from stillroom.recipe import Recipe
from stillroom.recipe_check import check, check_targets
from stillroom.recipes import RECIPES
from stillroom.students.distiller import Distiller, build_distiller
from stillroom.teachers.pooling import pooled
from stillroom.training.running_weights import RunningWeights
from stillroom.types import IGNORE, Batch, TargetSpec

SIZE, PICTURES = 64, 2
CELLS = (8, 8)  # that a region network samples; its labels have twice as many
# (channels, stride) of the tensors of ONNX files, which are not here
ONNX = {"person": (1, 1), "yolo": (1024, 8), "detector": (128, 8)}


def without_downloads(student: Any) -> Any:
    """A student with random weights; of a region network one whose heads are small."""
    own = {field.name for field in fields(student)}
    if "cells" in own:
        student = replace(student, unet=None, cells=CELLS, channels=16, base=4)
    return replace(student, weights=None) if "weights" in own else student


def said(recipe: Recipe) -> dict[str, Tensor]:
    """Every target as its teacher makes it of pictures of `SIZE`, on the meta device."""
    found: dict[str, Tensor] = {}
    with torch.device("meta"), torch.no_grad():
        for teacher in recipe.teachers:
            if type(teacher).__name__ == "OnnxTeacher":
                found |= {name: said_by_file(name) for name in teacher.targets}
            else:
                found |= said_by_network(teacher)
    return found


def said_by_file(name: str) -> Tensor:
    channels, stride = ONNX[name]
    return torch.empty(PICTURES, channels, SIZE // stride, SIZE // stride)


def said_by_network(teacher: Any) -> dict[str, Tensor]:
    config = teacher
    if type(teacher).__name__ == "RunTeacher":  # runs/NAME is a run of the recipe NAME
        config = without_downloads(RECIPES[Path(teacher.path).name]().student)
    network = build_network(config.architecture()).eval()
    taps = tuple(tap[1] for tap in teacher.taps)
    logits, features = network.forward_taps(
        torch.empty(PICTURES, 3, SIZE, SIZE), taps, boxes=torch.zeros(PICTURES, 4)
    )
    outputs = {tap[0]: features[tap[1]] for tap in teacher.taps} | {teacher.target: logits}
    strides = {tap[0]: tap[2] for tap in teacher.taps if len(tap) == 3}
    return pooled(outputs, strides, (SIZE, SIZE))


def specs_of(shapes: dict[str, Tensor], recipe: Recipe) -> dict[str, TargetSpec]:
    kinds = recipe.target_kinds()
    return {
        name: TargetSpec(
            name=name,
            shape=tuple(value.shape[1:]),
            stride=SIZE // value.shape[2],
            kind=kinds[name],
        )
        for name, value in shapes.items()
    }


def batch_of(shapes: dict[str, Tensor], recipe: Recipe) -> Batch:
    draw = torch.Generator().manual_seed(4)
    grid, classes = recipe.data.regions or (SIZE, SIZE), recipe.student.classes
    mask = torch.randint(0, max(2, classes), (PICTURES, *grid), generator=draw)
    mask[:, : grid[0] // 8] = IGNORE
    batch = Batch(
        keys=tuple("ab"),
        image=torch.rand(PICTURES, 3, SIZE, SIZE, generator=draw),
        mask=mask,
        inside=torch.ones_like(mask, dtype=torch.bool),
        targets={n: torch.randn(v.shape, generator=draw) for n, v in shapes.items()},
        boxes=torch.tensor([[4.0, 8.0, 60.0, 62.0]] * PICTURES),
    )
    running = RunningWeights(recipe.terms, torch.device("cpu"))
    running.follow(running.pixels(batch))
    running.give(batch)
    return batch


def counted(term: Term, classes: int) -> Term:
    """The term as it is trained, classes having unequal numbers of pixels."""
    if not term.needs.class_counts:
        return term
    assert isinstance(term, CountsClasses)
    return term.with_class_counts(tuple(range(1, classes + 1)))


@pytest.fixture(scope="module", params=RECIPES)
def built(request) -> tuple[Recipe, Distiller, Batch]:
    recipe = RECIPES[request.param]()
    student = without_downloads(recipe.student)
    terms = tuple(counted(term, student.classes) for term in recipe.terms)
    recipe = replace(recipe, student=student, terms=terms)
    if recipe.data.regions is not None:
        regions = (2 * CELLS[0], 2 * CELLS[1])
        recipe = replace(recipe, data=replace(recipe.data, regions=regions))
    shapes = said(recipe)
    torch.manual_seed(1)
    specs = specs_of(shapes, recipe)
    check_targets(recipe, specs)
    distiller = build_distiller(student, terms, specs, (SIZE, SIZE), recipe.data.regions)
    return recipe, distiller, batch_of(shapes, recipe)


def test_it_is_named_as_it_is_registered_and_nothing_is_known_to_be_wrong(built):
    recipe, _, _ = built
    assert RECIPES[recipe.name]().name == recipe.name
    check(recipe)
    assert set(recipe.codec) == set(recipe.target_kinds())


def test_every_term_has_a_gradient_in_the_student_and_every_projection_trains(built):
    recipe, distiller, batch = built
    outputs = distiller(batch.image, batch.boxes)
    parameters = [p for p in distiller.student.parameters() if p.requires_grad]
    for term in recipe.terms:
        total, count = term.total(outputs, batch, 0.5), term.count(batch)
        assert total.isfinite() and total > 0 and count > 0, term.label
        gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        assert any(g is not None and g.isfinite().all() and g.any() for g in gradients), term.label
    sums = [term.total(outputs, batch, 0.5) for term in recipe.terms]
    torch.stack(sums).sum().backward()
    assert all(p.grad is not None for p in distiller.projections.parameters())
    named = {t.needs.output for t in recipe.terms if t.needs.tap is not None}
    assert len(distiller.projections) == len(named)


def test_what_it_freezes_is_a_part_of_the_student_that_was_trained_before(built):
    recipe, distiller, _ = built
    modules = dict(distiller.student.named_modules())
    assert all(part in modules for part in recipe.freeze)
    student = RECIPES[recipe.name]().student
    assert not recipe.freeze or student.weights is not None or student.unet is not None


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("street-")])
def test_its_file_says_the_command_that_trains_it(name):
    text = import_module(RECIPES[name].__module__).__doc__
    assert f"stillroom train {name} " in f"{text} ".replace("\n", " ")
