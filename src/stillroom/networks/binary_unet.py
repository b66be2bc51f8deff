"""The binary U-Net of the system S2, of any width, for grey or coloured pictures.

Its size is usually counted with BatchNorm's running means and variances: 31,064,901 at width 64 and
122,721 at width 4, grey; of these 31,056,963 and 122,223 are parameters.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from stillroom.networks.description import Triple, describe
from stillroom.networks.normalise import Normalise
from stillroom.networks.taps import Network

LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in grey (ITU-R BT.601)
_LEVELS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryUNetFields:
    """What describes a binary U-Net, in `student.json`."""

    width: Annotated[int, msgspec.Meta(ge=2, le=1024)] = 4  # channels at full size
    channels: Literal[1, 3] = 1  # that it looks at: 1 = grey, made of RGB inside; 3 = RGB
    mean: Triple = (0.0, 0.0, 0.0)  # of RGB in [0, 1]; the input has a BatchNorm of its own
    std: Triple = (1.0, 1.0, 1.0)  # of RGB in [0, 1]

    @property
    def classes(self) -> int:
        """Channels of the logits."""
        return 1

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, without weights."""
        return describe("binary-unet", BinaryUNetFields, self)


class BinaryUNet(Network):
    """Four halvings; `width` channels at full size, twice as many at each halving.

    The encoder is normalised after each ReLU, the decoder not at all; half of the values of the two
    coarsest maps are dropped while it trains. Taps: `encoder.N` has stride 2**N, N from 0 to 4;
    `decoder.N` has stride 2**(3 - N).
    """

    def __init__(
        self, width: int, channels: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        sizes = [width * 2**level for level in range(_LEVELS + 1)]
        self.normalise = Normalise(mean, std)
        self.grey = Grey() if channels == 1 else nn.Identity()
        self.norm = nn.BatchNorm2d(channels)
        self.encoder = nn.ModuleList(
            nn.Sequential(*_layers(c_in, c_out), *_layers(c_out, c_out))
            for c_in, c_out in zip([channels, *sizes], sizes, strict=False)
        )
        self.dropout = nn.Dropout(0.5)
        self.decoder = nn.ModuleList(_Up(c) for c in reversed(sizes[:_LEVELS]))
        self.last = nn.Sequential(*_layers(width, width // 2, with_norm=False))
        self.segmentation_head = nn.Conv2d(width // 2, 1, 1)
        self.stride = 2**_LEVELS
        encoders = tuple(f"encoder.{level}" for level in range(_LEVELS + 1))
        self.taps = encoders + tuple(f"decoder.{block}" for block in range(_LEVELS))
        self.apply(_first_weights)

    def _run(self, image: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and features of a normalised picture."""
        x = self.norm(self.grey(image))
        named: dict[str, Tensor] = {}
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(functional.max_pool2d(x, 2) if level else x)
            named[f"encoder.{level}"] = x
            x = self.dropout(x) if level >= _LEVELS - 1 else x
            skips.append(x)
        skips.pop()
        for number, up in enumerate(self.decoder):
            x = named[f"decoder.{number}"] = up(skips.pop(), x)
        return self.segmentation_head(self.last(x)), named


class Grey(nn.Module):
    """One channel of three, by the shares `LUMA`; nothing of it is in the state dict."""

    luma: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("luma", torch.tensor(LUMA).view(3, 1, 1), persistent=False)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Return grey pictures; `image` is RGB in any units."""
        return (image * self.luma).sum(1, keepdim=True)


class _Up(nn.Module):
    """Twice the size and half the channels, then two convolutions over it and the skip."""

    def __init__(self, c_out: int) -> None:
        super().__init__()
        # an even kernel that keeps the size looks one pixel further to the right and down
        self.reduce = nn.Sequential(
            nn.Upsample(scale_factor=2.0),
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(2 * c_out, c_out, 2),
            nn.ReLU(inplace=True),
        )
        self.convolutions = nn.Sequential(
            *_layers(2 * c_out, c_out, with_norm=False), *_layers(c_out, c_out, with_norm=False)
        )

    def forward(
        self, skip: Float[Tensor, "b c h w"], below: Float[Tensor, "b _ y x"]
    ) -> Float[Tensor, "b c h w"]:
        return self.convolutions(torch.cat([skip, self.reduce(below)], dim=1))


def _layers(c_in: int, c_out: int, *, with_norm: bool = True) -> list[nn.Module]:
    layers = [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(inplace=True)]
    return [*layers, nn.BatchNorm2d(c_out)] if with_norm else layers


def _first_weights(module: nn.Module) -> None:
    """He's normal weights, biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
