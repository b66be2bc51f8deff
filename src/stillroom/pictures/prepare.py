"""One picture of a source made ready for a shard: decoded, checked, brought to size, encoded."""

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stillroom.errors import UserError
from stillroom.pictures.coco import class_mask, instance_masks, regions_of
from stillroom.pictures.decode import (
    MAX_SIDE_PX,
    PADDING_GREY,
    BadPicture,
    can_keep_bytes,
    encode_mask,
    encode_picture,
    open_picture,
    to_rgb,
)
from stillroom.pictures.labels import Labels
from stillroom.pictures.sources import Item
from stillroom.types import IGNORE

Fit = Literal["stretch", "letterbox"]
PictureFormat = Literal["jpg", "png"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The size in pixels that every picture is brought to: stretched, or within grey padding."""

    height: int
    width: int
    fit: Fit = "stretch"

    def __post_init__(self) -> None:
        if not (1 <= self.height <= MAX_SIDE_PX and 1 <= self.width <= MAX_SIDE_PX):
            found = f"{self.height} {self.width}"
            raise UserError(
                "--size is out of range", found=found, wanted=f"1 to {MAX_SIDE_PX} pixels each"
            )

    def inside(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return x0, y0, x1, y1 of where a picture of that size comes to lie, in the middle."""
        if self.fit == "stretch":
            return 0, 0, self.width, self.height
        scale = min(self.height / height, self.width / width)
        w, h = max(1, round(width * scale)), max(1, round(height * scale))
        x0, y0 = (self.width - w) // 2, (self.height - h) // 2
        return x0, y0, x0 + w, y0 + h

    def place(self, image: Image.Image) -> Image.Image:
        """Return an RGB picture at this size, bilinear with antialiasing."""
        x0, y0, x1, y1 = self.inside(image.height, image.width)
        canvas = Image.new("RGB", (self.width, self.height), (PADDING_GREY,) * 3)
        canvas.paste(image.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR), (x0, y0))
        return canvas

    def place_mask(self, mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "y x"]:
        """Return a mask at this size, nearest neighbour, ignore on the padding."""
        x0, y0, x1, y1 = self.inside(*mask.shape)
        resized = Image.fromarray(mask).resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST)
        canvas = np.full((self.height, self.width), IGNORE, np.uint8)
        canvas[y0:y1, x0:x1] = np.array(resized)
        return canvas


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a shard keeps of one picture: its members' bytes, its size and place in pixels."""

    key: str
    height: int
    width: int
    inside: tuple[int, int, int, int]
    picture: bytes
    mask: bytes | None = None
    extra: bytes | None = None


def prepare(
    key: str, item: Item, labels: Labels, geometry: Geometry | None, picture_format: PictureFormat
) -> Prepared:
    """Return the members of one picture; raises BadPicture that names the file."""
    if not item.picture.is_file() and item.mask is not None and item.mask.is_file():
        raise BadPicture(f"{item.picture} is missing", found=f"only its mask {item.mask}")
    data, image = open_picture(item.picture)
    rgb = to_rgb(image, item.picture)
    height, width = rgb.height, rgb.width
    instances = [] if item.instances is None else instance_masks(item, height, width)
    mask = _mask(item, instances, rgb.size, labels)
    inside = (0, 0, width, height)
    keep = can_keep_bytes(data, image, picture_format)
    if geometry is not None and (height, width) != (geometry.height, geometry.width):
        inside = geometry.inside(height, width)
        height, width, keep = geometry.height, geometry.width, False
        rgb, mask = geometry.place(rgb), None if mask is None else geometry.place_mask(mask)
        instances = [geometry.place_mask(mask_of_one) for mask_of_one in instances]
    return Prepared(
        key=key,
        height=height,
        width=width,
        inside=inside,
        picture=data if keep else encode_picture(rgb, picture_format),
        mask=None if mask is None else encode_mask(mask),
        extra=_extra(key, item, instances),
    )


def _mask(
    item: Item, instances: list[Any], size: tuple[int, int], labels: Labels
) -> UInt8[np.ndarray, "h w"] | None:
    """Return the mask of a picture of `size` (w, h), None where its source has none."""
    if item.instances is not None:
        return class_mask(item, instances, size[1], size[0])
    if item.mask is None:
        return None
    if not item.mask.is_file():
        raise BadPicture(
            f"{item.picture} has no mask",
            wanted=item.mask,
            fix="--skip-bad leaves out such pictures; unlabelled:PATH packs pictures without masks",
        )
    mask = labels.read(item.mask)
    if mask.shape != (size[1], size[0]):
        raise BadPicture(
            f"{item.mask} is not the size of its picture {item.picture}",
            found=f"mask {mask.shape[1]}x{mask.shape[0]}",
            wanted=f"{size[0]}x{size[1]}, as the (upright) picture",
        )
    return mask


def _extra(key: str, item: Item, instances: list[Any]) -> bytes | None:
    """Return a picture's json: its name in the source where that is not the key, its regions."""
    body: dict[str, Any] = {} if item.name == key else {"source": item.name}
    if item.instances is not None:
        body |= regions_of(item, instances)
    return json.dumps(body, ensure_ascii=False).encode() if body else None
