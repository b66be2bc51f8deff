"""Which parameters are frozen, and when: parts of the student by module name, freed all at once or
one after another.

What is frozen stays in the optimiser, so that what it knows of other parameters is never lost; it
gets no gradient and no decay, and its BatchNorm stays in evaluation mode.
"""

from functools import cache

from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.recipe import Recipe
from stillroom.students.distiller import Distiller


def num_freed(recipe: Recipe, epoch: int) -> int:
    """Return how many of the parts in `freeze`, from the first on, train in this epoch."""
    begin, every, total = recipe.freeze_epochs, recipe.unfreeze_every, len(recipe.freeze)
    if begin is None or epoch < begin:
        return 0
    return total if every is None else min(total, 1 + (epoch - begin) // every)


def set_mode(model: nn.Module, distiller: Distiller, recipe: Recipe, epoch: int) -> None:
    """Put the network into training mode, frozen parts and their BatchNorm into evaluation mode."""
    model.train()
    if num_freed(recipe, epoch) < len(recipe.freeze):
        for name, module in distiller.student.named_modules():
            if _is_frozen(name, recipe, epoch):
                module.training = False  # of this module alone: what it holds may train


def drop_frozen_gradients(distiller: Distiller, recipe: Recipe, epoch: int) -> None:
    """Leave the optimiser no gradient of what is frozen in this epoch: decay would move it, too."""
    for parameter in frozen_parameters(distiller, recipe, epoch):
        parameter.grad = None


def frozen_parameters(distiller: Distiller, recipe: Recipe, epoch: int) -> list[Tensor]:
    """Return the student's parameters that do not train in this epoch."""
    if num_freed(recipe, epoch) == len(recipe.freeze):
        return []
    named = distiller.student.named_parameters()
    return [p for name, p in named if _is_frozen(name, recipe, epoch)]


def parameters_in_parts(distiller: Distiller, recipe: Recipe) -> list[Tensor]:
    """Return all parameters under the parts in `freeze`; raises UserError for a part that has none
    of its own.
    """
    named = list(distiller.student.named_parameters())
    places = [_part_of(name, recipe.freeze) for name, _ in named]
    for i, part in enumerate(recipe.freeze):
        if i not in places:
            legal = sorted({name.split(".")[0] for name, _ in named})
            raise UserError(
                f"the student has no part named {part!r} outside the parts before it",
                wanted=f"modules of {', '.join(legal)}",
            )
    return [p for (_, p), place in zip(named, places, strict=True) if place is not None]


def _is_frozen(name: str, recipe: Recipe, epoch: int) -> bool:
    place = _part_of(name, recipe.freeze)
    return place is not None and place >= num_freed(recipe, epoch)


@cache
def _part_of(name: str, parts: tuple[str, ...]) -> int | None:
    """Return the number of the first part that a module or parameter of this name lies in."""
    places = (i for i, part in enumerate(parts) if f".{part}." in f".{name}.")
    return next(places, None)
