"""Which parameters are frozen, and when."""

from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.recipe import Recipe
from stillroom.students.distiller import Distiller


def is_frozen(recipe: Recipe, epoch: int) -> bool:
    """Return whether the parts named in `freeze` keep still in this epoch."""
    epochs = recipe.epochs if recipe.freeze_epochs is None else recipe.freeze_epochs
    return bool(recipe.freeze) and epoch < epochs


def set_mode(model: nn.Module, distiller: Distiller, recipe: Recipe, epoch: int) -> None:
    """Put the network into training mode, frozen parts and their BatchNorm into evaluation mode."""
    model.train()
    if is_frozen(recipe, epoch):
        for name, module in distiller.student.named_modules():
            if any(f".{part}." in f".{name}." for part in recipe.freeze):
                module.eval()


def drop_frozen_gradients(distiller: Distiller, recipe: Recipe, epoch: int) -> None:
    """Leave the optimiser no gradient of what is frozen in this epoch: decay would move it, too."""
    if is_frozen(recipe, epoch):
        for _, parameter in frozen_parameters(distiller, recipe.freeze):
            parameter.grad = None


def frozen_parameters(distiller: Distiller, parts: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    """Return the student's parameters under modules of these names; raises UserError for a name
    that fits none.
    """
    names = [(f".{name}", p) for name, p in distiller.student.named_parameters()]
    for part in parts:
        if not any(f".{part}." in name for name, _ in names):
            legal = sorted({name.split(".")[1] for name, _ in names})
            raise UserError(f"the student has no part named {part!r}", wanted=", ".join(legal))
    return [(name, p) for name, p in names if any(f".{part}." in name for part in parts)]
