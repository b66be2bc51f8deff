"""What every network here has in common: taps with names, and a smallest step in picture size."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.networks.normalise import Normalise


class Network(nn.Module):
    """A network with its own normalisation; `taps` names what `forward_taps` can return."""

    normalise: Normalise
    needs_boxes: bool = False  # True: its logits are those of a region of each picture
    stride: int  # height and width of a picture are multiples of this, px
    taps: tuple[str, ...]
    # what a partial load of weights matched, or was dropped from a file's names; "" = nothing
    report: str = ""

    def forward(
        self, image: Float[Tensor, "b 3 h w"], boxes: Float[Tensor, "b 4"] | None = None
    ) -> Float[Tensor, "b k y x"]:
        """Return logits; height and width must be multiples of `stride` (UserError).

        `boxes` x0, y0, x1, y1 in pixels are looked at where the network needs them.
        """
        return self.forward_taps(image, (), boxes=boxes)[0]

    def forward_taps(
        self,
        image: Float[Tensor, "b 3 h w"],
        taps: tuple[str, ...],
        normalise: Normalise | None = None,
        boxes: Float[Tensor, "b 4"] | None = None,
    ) -> tuple[Float[Tensor, "b k y x"], dict[str, Float[Tensor, "b _ _ _"]]]:
        """Return logits and the named features; an unknown tap is a UserError.

        `normalise` replaces the network's own.
        """
        require_taps(taps, self.taps)
        require_size(image, self.stride)
        logits, features = self._run((normalise or self.normalise)(image), taps)
        return logits, {tap: features[tap] for tap in taps}

    def _run(self, image: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and at least the named features of a normalised picture (b 3 h w)."""
        raise NotImplementedError


@contextmanager
def kept_outputs(modules: Mapping[str, nn.Module], outputs: dict[str, Any]) -> Iterator[None]:
    """Put what modules return into `outputs`, by name, through hooks that live for this block.

    A tensor is copied: the layer that follows may write into it (`ReLU(inplace=True)`).
    """

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            outputs[name] = output.clone() if isinstance(output, Tensor) else output

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_taps(wanted: tuple[str, ...], legal: tuple[str, ...]) -> None:
    """Raise UserError for a tap that the network does not have, listing those that it has."""
    for tap in wanted:
        if tap not in legal:
            raise UserError(
                "the network has no such tap",
                found=tap,
                wanted="one of " + ", ".join(legal),
                fix=f"name one of these instead of {tap}",
            )


def require_size(image: Float[Tensor, "b 3 h w"], step: int) -> None:
    """Raise UserError for a size that is no multiple of `step` pixels, naming the nearest legal.

    Says nothing while the network is being exported: there the size is free.
    """
    is_tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if torch.compiler.is_compiling() or is_tracing:
        return
    height, width = image.shape[2:]
    if height % step or width % step:
        raise UserError(
            "the network cannot take pictures of this size",
            found=f"{height} x {width} pixels (height x width)",
            wanted=f"multiples of {step}",
            fix=f"the nearest legal size is {_nearest(height, step)} x {_nearest(width, step)}",
        )


def _nearest(size: int, step: int) -> int:
    return max(step, (size + step // 2) // step * step)
