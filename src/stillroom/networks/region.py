"""The network of the system S4: one box of a picture in three classes, background, the box's own
instance and others.

A U-Net finds the foreground of the whole picture; heads look at it and at the colours, sampled in
the box, and say what is foreground, and whose. Source: PINTO0309/human-instance-segmentation (MIT).
"""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from stillroom.networks.description import Name, Triple, Width, describe
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from stillroom.networks.smp import SmpNetwork
from stillroom.networks.taps import Network, require_size, require_taps

_Side = Annotated[int, msgspec.Meta(ge=8, le=1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionFields:
    """What describes a region network, in `student.json`."""

    encoder: Name = "timm-efficientnet-b0"  # of the U-Net: smp's exact name
    # height and width, in cells, of what is sampled in a box; logits have twice as many
    cells: tuple[_Side, _Side] = (80, 60)
    channels: Annotated[int, msgspec.Meta(ge=8, le=1024)] = 256  # of the heads' features
    base: Width = 64  # channels of the foreground branch at its finest level
    mean: Triple = IMAGENET_MEAN  # of RGB in [0, 1], as the U-Net's weights were trained
    std: Triple = IMAGENET_STD  # of RGB in [0, 1], as the U-Net's weights were trained

    @property
    def classes(self) -> int:
        """Channels of the logits: background, target, other."""
        return 3

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, without weights."""
        return describe("region", RegionFields, self)


class RegionNetwork(Network):
    """Logits of background, target and other on 2 `cells` of a box of each picture.

    Taps, on the same grid: `bg_fg` are the logits of background and foreground, `target` those of
    target and other, which count where there is foreground.
    """

    needs_boxes = True
    taps = ("bg_fg", "target")

    def __init__(
        self,
        encoder: str,
        cells: tuple[int, int],
        channels: int,
        base: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        encoder_weights: str | None = None,
    ) -> None:
        """`encoder_weights` is None (random) or "imagenet" (downloaded, or from the cache)."""
        super().__init__()
        c = channels
        self.normalise = Normalise(mean, std)
        self.cells = (cells[0], cells[1])
        self.unet = SmpNetwork("unet", encoder, 1, mean, std, encoder_weights=encoder_weights)
        self.stride = self.unet.stride
        self.mask = nn.Conv2d(1, 2, 1)
        self.colours = nn.Sequential(
            *_step(3, c // 4), *_step(c // 4, c // 2), *_step(c // 2, c), *_norm(c, c, kernel=1)
        )
        self.shared = nn.Sequential(
            nn.Conv2d(c + 2, c, 1),
            *_norm(c, c),
            nn.Dropout2d(0.1),
            Residual(c),
            nn.Dropout2d(0.1),
            Residual(c),
        )
        self.foreground = Foreground(c, base)
        self.finer = nn.Sequential(*_double(2, 32), nn.Conv2d(32, 2, 1))
        self.gate = Gate(c)
        self.separate = nn.Sequential(
            Residual(c),
            SpatialAttention(),
            nn.Dropout2d(0.1),
            *_double(c, c // 2),
            ChannelAttention(c // 2),
            nn.Dropout2d(0.1),
            Residual(c // 2),
            nn.Conv2d(c // 2, 2, 1),
        )

    def forward_taps(
        self,
        image: Float[Tensor, "b 3 h w"],
        taps: tuple[str, ...],
        normalise: Normalise | None = None,
        boxes: Float[Tensor, "b 4"] | None = None,
    ) -> tuple[Float[Tensor, "b 3 y x"], dict[str, Float[Tensor, "b 2 y x"]]]:
        """Return logits and the named heads for a box x0, y0, x1, y1 (pixels) of each picture."""
        require_taps(taps, self.taps)
        require_size(image, self.stride)
        assert boxes is not None, "a region network needs boxes"
        normalise = normalise or self.normalise
        mask = self.mask(self.unet.forward_taps(image, (), normalise)[0])
        mask, colours = (_sampled(x, boxes, self.cells) for x in (mask, normalise(image)))
        shared = self.shared(torch.cat([self.colours(colours), mask], 1))
        coarse = self.foreground(shared)
        bg_fg = self.finer(coarse)
        target = self.separate(shared * self.gate(coarse))
        likely = bg_fg.softmax(1)[:, 1:]
        logits = torch.cat([bg_fg[:, :1], bg_fg[:, 1:] + target * likely], 1)
        heads = {"bg_fg": bg_fg, "target": target}
        return logits, {tap: heads[tap] for tap in taps}


class Residual(nn.Module):
    """Two convolutions over a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_norm(channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        return functional.relu(self.body(x) + x)


class Foreground(nn.Module):
    """A U-Net of three levels with attention at its bottom: logits of background and foreground."""

    def __init__(self, c_in: int, base: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_norm(c_in, base), Residual(base), Residual(base))
        self.second = nn.Sequential(Residual(base), Residual(base), *_norm(base, 2 * base))
        self.third = nn.Sequential(
            Residual(2 * base), Residual(2 * base), *_norm(2 * base, 4 * base)
        )
        self.attention = nn.Sequential(
            Residual(4 * base),
            Residual(4 * base),
            *_norm(4 * base, 4 * base),
            nn.Conv2d(4 * base, 4 * base, 1),
            nn.Sigmoid(),
        )
        self.bottom = nn.Conv2d(4 * base, 4 * base, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(4 * base, 2 * base, 2, stride=2)
        self.join2 = _join(2 * base)
        self.up1 = nn.ConvTranspose2d(2 * base, base, 2, stride=2)
        self.join1 = _join(base)
        self.head = nn.Sequential(*_norm(base, base // 2), nn.Conv2d(base // 2, 2, 1))

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b 2 y x"]:
        first = self.first(x)
        second = self.second(functional.max_pool2d(first, 2))
        third = self.third(functional.max_pool2d(second, 2))
        bottom = self.bottom(third) * self.attention(third)
        second = self.join2(_beside(self.up2(bottom), second))
        return self.head(self.join1(_beside(self.up1(second), first)))


class Gate(nn.Sequential):
    """What the foreground lets through, 0 to 1 for each channel and cell."""

    def __init__(self, channels: int) -> None:
        c = channels
        super().__init__(
            nn.Conv2d(2, c // 4, 1),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.05),
            nn.Conv2d(c // 4, c // 2, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c // 2, c, 1),
            nn.Sigmoid(),
        )


class SpatialAttention(nn.Module):
    """Cells by their mean and largest channel. Source: Woo et al. 2018 (CBAM)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.conv(seen).sigmoid()


class ChannelAttention(nn.Module):
    """Channels by their mean and largest cell. Source: Woo et al. 2018 (CBAM)."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        few = max(1, channels // reduction)
        self.body = nn.Sequential(
            nn.Conv2d(channels, few, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(few, channels, 1, bias=False),
        )

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        seen = self.body(x.mean((2, 3), keepdim=True)) + self.body(x.amax((2, 3), keepdim=True))
        return x * seen.sigmoid()


def _sampled(
    values: Float[Tensor, "b c h w"], boxes: Float[Tensor, "b 4"], cells: tuple[int, int]
) -> Float[Tensor, "b c y x"]:
    """Return what lies in a box of each picture, four samples around each cell's centre."""
    from torchvision.ops import roi_align  # takes seconds to import

    numbers = torch.arange(boxes.shape[0], device=boxes.device, dtype=torch.float32)
    places = torch.cat([numbers[:, None], boxes.float()], 1)
    return roi_align(values.float(), places, cells, sampling_ratio=2, aligned=True)


def _norm(c_in: int, c_out: int, kernel: int = 3) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


def _step(c_in: int, c_out: int) -> list[nn.Module]:
    return [*_norm(c_in, c_out), Residual(c_out)]


def _double(c_in: int, c_out: int) -> list[nn.Module]:
    up = nn.ConvTranspose2d(c_in, c_out, 2, stride=2, bias=False)
    return [up, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


def _join(channels: int) -> nn.Sequential:
    return nn.Sequential(*_norm(2 * channels, channels), Residual(channels), Residual(channels))


def _beside(
    up: Float[Tensor, "b c _ _"], skip: Float[Tensor, "b c y x"]
) -> Float[Tensor, "b _ y x"]:
    up = functional.interpolate(up, skip.shape[2:], mode="bilinear", align_corners=False)
    return torch.cat([up, skip], 1)
