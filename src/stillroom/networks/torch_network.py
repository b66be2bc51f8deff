"""Any `nn.Module` as one of our networks: logits as it returns them, taps by module name."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

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
    taps: tuple[str, ...] = ()  # modules, by name, whose output (b c y x) a term may use
    stride: int = 32  # height and width of a picture are multiples of this, px
    resize_logits: bool = False  # bring logits to the size of the picture, bilinearly

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, without weights."""
        return describe("torch", TorchFields, self)


class TorchNetwork(Network):
    """An `nn.Module` that returns logits, a dict with `out`, or a tuple that begins with them."""

    def __init__(self, module: nn.Module, about: TorchFields) -> None:
        super().__init__()
        names = [name for name, _ in module.named_modules() if name]
        for tap in about.taps:
            if tap not in names:
                near = ", ".join(get_close_matches(tap, names, 8, 0.4)) or "none"
                raise UserError(f"the network has no module {tap!r}", wanted=f"near names: {near}")
        self.normalise = Normalise(about.mean, about.std)
        self.stride, self.taps = about.stride, about.taps
        self.module = module
        self._about = about

    def _run(self, image: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and features; UserError where they are no maps of the picture."""
        named: dict[str, Any] = {}
        with kept_outputs({tap: self.module.get_submodule(tap) for tap in taps}, named):
            found = self.module(image)
        return self._logits(found, image), {tap: _feature(tap, named.get(tap)) for tap in taps}

    def _logits(self, found: Any, image: Tensor) -> Tensor:
        if isinstance(found, tuple | list | dict):
            found = found.get("out") if isinstance(found, dict) else found[0]
        if isinstance(found, Tensor) and found.ndim == 4 and self._about.resize_logits:
            found = nn.functional.interpolate(found, image.shape[2:], mode="bilinear")
        wanted = (len(image), self._about.classes, *image.shape[2:])
        if not isinstance(found, Tensor) or found.shape != wanted:
            raise UserError(
                f"{self._about.factory} does not give logits for every pixel",
                found=_kind(found),
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
    module = load_function(code)()
    if not isinstance(module, nn.Module):
        raise UserError(f"{code} makes no torch.nn.Module", found=type(module).__name__)
    return TorchNetwork(module, about)


def _feature(tap: str, found: Any) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != 4:
        raise UserError(
            f"the output of the module {tap} is no map", found=_kind(found), wanted="b c y x"
        )
    return found


def _kind(found: Any) -> str:
    return f"{tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
