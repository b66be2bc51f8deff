"""Any `nn.Module` as one of our networks: logits as it returns them, taps by module name."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.networks.description import Classes, Triple, describe
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from stillroom.networks.taps import Network, kept_outputs
from stillroom.user_code import load_function


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFields:
    """What describes a network of the user's own: of a student, in `student.json`."""

    factory: str  # path/to/file.py:function, without arguments; it returns the nn.Module
    classes: Classes = 1  # channels of the logits; 1 for a binary task
    mean: Triple = IMAGENET_MEAN  # of RGB in [0, 1], as the module expects
    std: Triple = IMAGENET_STD  # of RGB in [0, 1], as the module expects
    # modules, or what its dict holds, by name: outputs (b c y x) that a term may use
    taps: tuple[str, ...] = ()
    stride: int = 32  # height and width of a picture are multiples of this, px
    resize_logits: bool = False  # bring logits to the size of the picture, bilinearly

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, without weights."""
        return describe("torch", TorchFields, self)


class TorchNetwork(Network):
    """An `nn.Module` that returns logits, a dict with `out`, or a tuple that begins with them."""

    def __init__(self, module: nn.Module, about: TorchFields) -> None:
        super().__init__()
        self.normalise = Normalise(about.mean, about.std)
        self.stride, self.taps = about.stride, about.taps
        self.module = module
        self._about = about

    def _run(self, image: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and features; UserError where they are no maps of the picture."""
        found, features = run_module(self.module, image, taps)
        return self._logits(found, image), features

    def _logits(self, found: Any, image: Tensor) -> Tensor:
        if isinstance(found, Tensor) and found.ndim == 4 and self._about.resize_logits:
            found = nn.functional.interpolate(found, image.shape[2:], mode="bilinear")
        wanted = (len(image), self._about.classes, *image.shape[2:])
        if not isinstance(found, Tensor) or found.shape != wanted:
            raise UserError(
                f"{self._about.factory} does not give logits for every pixel",
                found=kind_of(found),
                wanted=wanted,
                fix="--student.classes, or --student.resize-logits where only the size differs",
            )
        return found


def build_torch(about: TorchFields, code: str | None) -> TorchNetwork:
    """Build a network of the user's own by `code`, path/to/file.py:function.

    UserError where none is named: what a file says of itself is never imported.
    """
    if code is None:
        raise UserError(
            "only your own code can build this network, and a run folder imports nothing by itself",
            found=f"a network of {about.factory}",
            fix=f"name the code: --code {about.factory}",
        )
    return TorchNetwork(load_module(code), about)


def load_module(code: str) -> nn.Module:
    """Return what a function of the user's own makes; UserError where that is no `nn.Module`."""
    module = load_function(code)()
    if not isinstance(module, nn.Module):
        raise UserError(f"{code} makes no torch.nn.Module", found=type(module).__name__)
    return module


def run_module(
    module: nn.Module, normalised: Float[Tensor, "b 3 h w"], taps: tuple[str, ...]
) -> tuple[Any, dict[str, Float[Tensor, "b _ _ _"]]]:
    """Return a module's main output (of a dict `out`, of a tuple the first) and its taps' maps.

    A tap is what the module of this name returns or, where there is none, what the network's dict
    holds under it. Raises UserError for a tap that is neither, with near names, or no map.
    """
    modules = dict(module.named_modules())
    named: dict[str, Any] = {}
    with kept_outputs({tap: modules[tap] for tap in taps if tap in modules}, named):
        found = module(normalised)
    outputs = found if isinstance(found, dict) else {}
    for tap in taps:
        if tap not in modules and tap not in outputs:
            near = get_close_matches(tap, [*filter(None, modules), *outputs], 8, 0.4)
            raise UserError(
                f"the network has no module {tap!r}, and returns nothing of that name",
                wanted=f"near names: {', '.join(near) or 'none'}",
            )
    if isinstance(found, tuple | list | dict):
        found = found.get("out") if isinstance(found, dict) else found[0]
    return found, {tap: _feature(tap, named.get(tap, outputs.get(tap))) for tap in taps}


def _feature(tap: str, found: Any) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != 4:
        is_tokens = isinstance(found, Tensor) and found.ndim == 3
        raise UserError(
            f"the output of {tap} is no map",
            found=kind_of(found),
            wanted="b c y x",
            fix="tokens have no grid: tap a module that makes maps of them, or name the model in a"
            " TimmTeacher"
            if is_tokens
            else "tap another module",
        )
    return found


def kind_of(found: Any) -> str:
    """Return a tensor's shape, or the type of anything else, for an error."""
    return f"{tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
