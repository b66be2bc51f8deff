"""A small U-Net of our own: conv-BatchNorm-ReLU blocks, quick on a CPU, nothing to download.

4 classes: width 4, depth 3 has 30,864 parameters; width 16, depth 3 has 488,052.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.networks.normalise import Normalise
from stillroom.networks.taps import require_size, require_taps

_MAX_DEPTH = 16  # a picture of 65,536 pixels a side is then one


class UNet(nn.Module):
    """`depth` halvings, `width` channels at full size, twice as many at each halving.

    Taps: `encoder.N` has stride 2**N, N from 0 to `depth`; `decoder.N` has stride 2**(depth - 1 -
    N).
    """

    def __init__(
        self, width: int, depth: int, classes: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        if min(width, depth, classes) < 1 or depth > _MAX_DEPTH:
            raise UserError(
                "no such U-Net",
                found=f"width {width}, depth {depth}, classes {classes}",
                wanted=f"all three at least 1, depth at most {_MAX_DEPTH}",
            )
        channels = [width * 2**level for level in range(depth + 1)]
        self.normalise = Normalise(mean, std)
        self.encoder = nn.ModuleList(
            _block(3 if level == 0 else channels[level - 1], channels[level])
            for level in range(depth + 1)
        )
        self.decoder = nn.ModuleList(
            _block(channels[level + 1] + channels[level], channels[level])
            for level in reversed(range(depth))
        )
        self.segmentation_head = nn.Conv2d(width, classes, 1)
        self.stride = 2**depth
        self.taps = tuple(f"encoder.{level}" for level in range(depth + 1)) + tuple(
            f"decoder.{block}" for block in range(depth)
        )

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        """Return logits; height and width must be multiples of `stride` (UserError)."""
        return self.forward_taps(image, ())[0]

    def forward_taps(
        self,
        image: Float[Tensor, "b 3 h w"],
        taps: tuple[str, ...],
        normalise: Normalise | None = None,
    ) -> tuple[Float[Tensor, "b k h w"], dict[str, Float[Tensor, "b _ _ _"]]]:
        """Return logits and the named features; an unknown tap is a UserError.

        `normalise` replaces the network's own.
        """
        require_taps(taps, self.taps)
        require_size(image, self.stride)
        normalised = (normalise or self.normalise)(image)
        features = [self.encoder[0](normalised)]
        for block in list(self.encoder)[1:]:
            features.append(block(nn.functional.max_pool2d(features[-1], 2)))
        named = {f"encoder.{level}": feature for level, feature in enumerate(features)}
        x = features.pop()
        for number, block in enumerate(self.decoder):
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, features.pop()], dim=1))
            named[f"decoder.{number}"] = x
        return self.segmentation_head(x), {tap: named[tap] for tap in taps}


def _block(c_in: int, c_out: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )
