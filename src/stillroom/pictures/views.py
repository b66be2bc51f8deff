"""How pictures are looked at: all of each, and boxes that are drawn for its key.

Every draw is a hash of (seed, key, number) and is rounded to pixels, so that it is the same on
every machine; what was drawn is stored with the row all the same and never drawn again.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Protocol, runtime_checkable

from stillroom.errors import UserError
from stillroom.hashing import keyed_hash
from stillroom.types import MAX_VIEW_PIXELS, View

PixelBox = tuple[int, int, int, int]  # x0, y0, x1, y1 in packed pixels
_SCALES, _ASPECTS = (0.01, 10.0), (0.1, 10.0)


@runtime_checkable
class ViewSource(Protocol):
    """How often and how the pictures are looked at: a frozen dataclass of plain fields, which are
    recorded in the cache's identity.
    """

    @property
    def count(self) -> int:
        """Views of each picture of the training split; of validation only view 0 is kept."""
        ...

    def view(self, key: str, number: int, size: tuple[int, int], shown: PixelBox) -> View:
        """Return view `number` of a packed picture of `size` (h, w): a function of these alone.

        `shown` is what a view should show something of: the picture without its padding, or the box
        of a region. Where nothing is distilled, numbers past `count` are asked for as well.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """All of the picture, and boxes of drawn size, shape and place.

    In each direction a box lies within the picture where it is smaller, around it where it is
    larger.
    """

    # views of each training picture: number 0 is all of it, the others are drawn
    count: int = 1
    # range of a box's sides, 1 = the picture's: below 1 zooms in, above 1 leaves the picture;
    # a factor and its inverse are equally likely
    scale: tuple[float, float] = (0.5, 1.5)
    # range of a box's width by height, 1 = the picture's; drawn likewise
    aspect: tuple[float, float] = (0.8, 1.25)
    mirror: float = 0.5  # share of the drawn views that are mirrored
    seed: int = 0  # of what is drawn, whatever the seed of the training

    def __post_init__(self) -> None:
        for name, value, (least, most) in (
            ("scale", self.scale, _SCALES),
            ("aspect", self.aspect, _ASPECTS),
        ):
            if not least <= value[0] <= value[1] <= most:
                wanted = f"low and high, {least} to {most}"
                raise UserError(f"no such --views.{name}", found=value, wanted=wanted)
        if self.count < 1:
            raise UserError("no such --views.count", found=self.count, wanted="1 or more")
        if not 0 <= self.mirror <= 1:
            raise UserError("no such --views.mirror", found=self.mirror, wanted="0 to 1")

    def view(self, key: str, number: int, size: tuple[int, int], shown: PixelBox) -> View:
        """Return all of the picture for number 0, else a drawn box; UserError for more pixels than
        a view may have.
        """
        height, width = size
        if number == 0:
            return View(x0=0, y0=0, x1=width, y1=height)
        if height * width * self.scale[1] ** 2 > MAX_VIEW_PIXELS:
            raise UserError(
                f"a view may have {MAX_VIEW_PIXELS // 10**6} megapixels at most",
                found=f"pictures of {width}x{height}, --views.scale up to {self.scale[1]}",
            )
        scale, stretch = (
            low * (high / low) ** self._share(key, number, name)
            for name, (low, high) in (("scale", self.scale), ("aspect", self.aspect))
        )
        w = max(1, int(width * scale * sqrt(stretch)))
        h = max(1, int(height * scale / sqrt(stretch)))
        x0 = _place(shown[0], shown[2], w, self._share(key, number, "x"))
        y0 = _place(shown[1], shown[3], h, self._share(key, number, "y"))
        mirrored = self._share(key, number, "mirror") < self.mirror
        return View(number=number, x0=x0, y0=y0, x1=x0 + w, y1=y0 + h, mirrored=mirrored)

    def _share(self, key: str, number: int, name: str) -> float:
        """Return a number from [0, 1)."""
        return (keyed_hash("view", self.seed, key, number, name) >> 11) / 2**53


def num_views(views: ViewSource, split: str) -> int:
    """Return how many views of each picture of a split are kept."""
    return views.count if split == "train" else 1


def _place(low: int, high: int, length: int, share: float) -> int:
    """Return where a side begins that lies within [low, high), or around it where it is longer."""
    room = high - low - length
    steps = int(share * (abs(room) + 1))
    return low + steps if room > 0 else low - steps
