"""The nouns that every room shares: views, rows, targets and batches."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import msgspec
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.hashing import keyed_hash

MAX_VIEW_PIXELS = 100_000_000  # of a view, with what lies outside the picture
IGNORE = 255  # the mask value that no loss and no metric counts
# A picture's key; WebDataset skips folders named __like_this__ without a word.
_KEY = r"^(?!__[^/]*__/)[A-Za-z0-9_=-]+(/[A-Za-z0-9_=-]+)*\Z"
Key = Annotated[str, msgspec.Meta(pattern=_KEY, max_length=200)]
Split = Annotated[str, msgspec.Meta(pattern=r"^(train|val)\Z")]
ShardNumber = Annotated[int, msgspec.Meta(ge=0, le=999_999)]
Kind = Literal["logits", "features"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How a picture was looked at: a box in pixels of the packed picture, which may pass its edges,
    mirrored or not. Stored, never drawn again.
    """

    number: int = 0
    x0: int
    y0: int
    x1: int
    y1: int
    mirrored: bool = False

    def __post_init__(self) -> None:
        width, height = self.x1 - self.x0, self.y1 - self.y0
        if not (self.number >= 0 and min(width, height) > 0 and width * height <= MAX_VIEW_PIXELS):
            raise ValueError(f"no such view: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One (key, region, view): the unit that is encoded, checksummed and read."""

    key: str
    region: int | None = None  # None, or the number of the box
    view: View

    @property
    def name(self) -> str:
        """The picture's key, and which box of it this is."""
        return self.key if self.region is None else f"{self.key}, box {self.region}"

    def hash(self, *purpose: object) -> int:
        """Return 64 bits for one purpose: the seed of whatever is drawn for this row."""
        return keyed_hash(*purpose, self.key, self.region, self.view.number)


class ShardId(NamedTuple):
    """Which shard: the split's name and a number; the same for pictures and for teachers."""

    split: str
    number: int

    def __str__(self) -> str:
        return f"{self.split}-{self.number:06d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """A named array that a teacher said about a row.

    `shape` is (c, y, x) without the batch axis; `stride` is picture pixels per cell; `codec` is the
    codec's text form (`float16`).
    """

    name: str
    shape: tuple[int, int, int]
    stride: int
    kind: Kind
    codec: str = "float16"


class RowStatistics(NamedTuple):
    """What is kept of one row of one target besides its values; of those before encoding."""

    low: float
    high: float
    finite: float  # share of the values
    confidence: float | None  # mean over the cells of the likeliest class's probability; logits
    error: float = 0.0  # mean of (decoded - value)^2; 0 until it has been encoded


@dataclass(slots=True, kw_only=True)
class Batch:
    """Pictures with what is known of them; every tensor on one device.

    `image` is RGB in [0, 1]; `mask` has class indices with 255 = ignore; `inside` is False on
    padding; both are on the grid of the student's logits: pixels, or cells of a region, whose
    `boxes` x0, y0, x1, y1 are in pixels. `noise` is the mean squared error of targets
    that are right on average only.
    """

    keys: tuple[str, ...]
    image: Float[Tensor, "b 3 h w"]
    mask: Int[Tensor, "b y x"]
    inside: Bool[Tensor, "b y x"]
    targets: dict[str, Float[Tensor, "b _ _ _"]] = field(default_factory=dict)
    noise: dict[str, Float[Tensor, "b"]] = field(default_factory=dict)
    boxes: Float[Tensor, "b 4"] | None = None
    # running class weights of terms that ask for some, by the head that they read
    class_weights: dict[str, Float[Tensor, "_"]] = field(default_factory=dict)


def whole_box(size: tuple[int, int]) -> Float[Tensor, "1 4"]:
    """Return the box x0, y0, x1, y1 of all of a picture of `size` (h, w), pixels."""
    return torch.tensor([[0.0, 0.0, float(size[1]), float(size[0])]])
