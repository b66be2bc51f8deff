"""Runs the first optimiser step of `train` and writes down its gradient, running buffers, counts
and totals.

torchrun --nproc-per-node N tests/two_ranks_driver.py WORLD OUT [MICRO_BATCH]

The network gets what a split into ranks could change: BatchNorm (it has it), dropout, DropPath. A
world that does not divide the micro-batches is tried first.
"""

import importlib.util
import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import stillroom.training.loop as loop
import stillroom.training.setup as prepare
import stillroom.training.step as step_sums
from stillroom.errors import Stopped, UserError
from stillroom.recipe import Recipe
from stillroom.students.distiller import Distiller, build_distiller
from stillroom.training.context import TrainContext
from stillroom.training.step import step_counts, term_totals

_spec = importlib.util.spec_from_file_location("make", Path(__file__).with_name("make_tiny.py"))
assert _spec is not None and _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


def main(world: Path, out: Path, micro_batch: int = 4) -> None:
    """Write `first_step.safetensors` and what is said of steps of one micro-batch."""
    recipe = replace(make.tiny_recipe(world, out / "runs"), micro_batch=micro_batch)
    refused = refusal(replace(recipe, micro_batch=8, run=replace(recipe.run, name="refused")))
    first = FirstStep(out)
    with (
        patch.object(prepare, "build_distiller", with_dropout),
        patch.object(loop, "prepare", first.prepare),
        patch.object(loop, "step_counts", first.step_counts),
        patch.object(step_sums, "term_totals", first.term_totals),
        patch.object(loop, "learning_rate", first.instead_of_a_step),
        suppress(Stopped),
    ):
        loop.train(recipe)
    (out / "refused.json").write_text(json.dumps(refused))


def refusal(recipe: Recipe) -> str:
    """What is said of a recipe."""
    try:
        prepare.prepare(recipe)
    except UserError as error:
        return str(error)
    return ""


class DropPath(nn.Module):
    """Drops whole rows of a batch; torchvision has one, and takes two seconds to import."""

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.rand(len(x), 1, 1, 1) < 0.5
        return x * keep * 2 if self.training else x


def with_dropout(*words: object) -> Distiller:
    """The distiller of the recipe, with what it does not have."""
    distiller = build_distiller(*words)
    distiller.student.encoder[1].append(nn.Dropout2d(0.4))
    distiller.student.encoder[2].append(nn.Dropout(0.3))
    distiller.student.decoder[0].append(DropPath())
    distiller.student.encoder[2].append(nn.Conv2d(16, 16, 3, padding=1, groups=16))  # depthwise
    return distiller


class FirstStep:
    """Writes what the first step has, instead of stepping."""

    context: TrainContext

    def __init__(self, out: Path) -> None:
        self.out = out
        self.found: dict[str, Tensor] = {}

    def prepare(self, recipe: Recipe) -> TrainContext:
        self.context = prepare.prepare(recipe)
        return self.context

    def step_counts(self, context, batches):
        batches = list(batches)
        counts = self.found["counts"] = step_counts(context, batches)
        terms = context.recipe.terms
        self.found["first"] = torch.stack([term.count(batches[0]) for term in terms])
        self.found["totals"] = torch.zeros_like(counts)
        return counts

    def term_totals(self, *words):
        totals = term_totals(*words)
        self.found["totals"] += totals.detach()
        return totals

    def instead_of_a_step(self, *_: object) -> float:
        context = self.context
        context.reduce(self.found["totals"])
        for name, parameter in context.distiller.named_parameters():
            if parameter.grad is not None:
                self.found[f"gradient.{name}"] = parameter.grad.clone()
        for name, buffer in context.distiller.named_buffers():
            self.found[f"buffer.{name}"] = buffer
        if context.is_first:
            save_file(self.found, self.out / "first_step.safetensors")
        context.accelerator.wait_for_everyone()
        raise Stopped("that is all")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
