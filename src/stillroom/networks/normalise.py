"""The input normalisation of a network: RGB in [0, 1] becomes what the network was trained on."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Channels = Literal["RGB", "BGR"]


class Normalise(nn.Module):
    """(x in the wanted channel order * scale - mean) / std.

    `mean` and `std` are in the network's own channel order. Nothing of it is in the state dict: it
    belongs to the configuration, not to the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float = 1.0,
        channels: Channels = "RGB",
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or scale <= 0:
            raise UserError(
                "this normalisation is not possible",
                found=f"mean {mean}, std {std}, scale {scale}",
                wanted="three means, three positive deviations, a positive scale",
            )
        self.scale = scale
        self.channels: Channels = channels
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalise pictures; `image` is RGB in [0, 1]."""
        if self.channels == "BGR":
            image = image.flip(1)
        return (image * self.scale - self.mean) / self.std
