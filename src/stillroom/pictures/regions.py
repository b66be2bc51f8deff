"""Labels of a region: a box of a picture, in which one instance is the target and others are not.

Source: the three-class task of PINTO0309/human-instance-segmentation, sampled at the centres of
cells.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from stillroom.pictures.dataset import Picture, PictureSet
from stillroom.pictures.labels import palette_of
from stillroom.pictures.run_lengths import from_run_lengths
from stillroom.types import IGNORE, Row

REGION_CLASSES = ("background", "target", "other")


def classes_of(pictures: PictureSet, regions: bool) -> tuple[str, ...]:
    """Return the names of the classes that labels tell apart, of boxes with `regions`; none where
    there are no labels.
    """
    return REGION_CLASSES if regions and pictures.classes else tuple(pictures.classes)


def colours_of(
    pictures: PictureSet, regions: bool, num_classes: int
) -> tuple[tuple[int, int, int], ...]:
    """Return the classes' colours: the pictures' own, or, of boxes and where they have none, the
    usual ones.
    """
    own = () if regions else pictures.palette
    return tuple(own) or palette_of(num_classes)


def with_region_labels(
    seen: Picture, packed: Picture, row: Row, cells: tuple[int, int], size: tuple[int, int]
) -> Picture:
    """Return the picture of a row, `size` (h, w), with the labels of its region in place of its
    own, on a grid of `cells` (y, x) over its box; the nearest pixel of the packed picture counts.

    Background is 0, the region's own instance 1, every other instance of a class 2. Void where the
    picture is, or has no instances; what lies outside the packed picture is not inside. Raises
    DamageError for run lengths that are none.
    """
    ys, xs = _pixels(seen, row, cells, size)
    (top, bottom), (left, right) = _within(ys, packed, 0), _within(xs, packed, 1)
    mask = np.full(cells, IGNORE, np.uint8)
    target = _instance(packed, row)
    if target is not None and packed.mask is not None:
        place = np.ix_(ys[top:bottom], xs[left:right])
        labels, is_target = packed.mask[place], target[place]
        others = np.where((labels == 0) | (labels == IGNORE), labels, 2)
        mask[top:bottom, left:right] = np.where(is_target, 1, others)
    return replace(seen, mask=mask, inside=(left, top, right, bottom))


def _pixels(
    seen: Picture, row: Row, cells: tuple[int, int], size: tuple[int, int]
) -> tuple[Int[np.ndarray, "y"], Int[np.ndarray, "x"]]:
    """Return the rows and columns of the packed picture in which the cells' centres lie."""
    assert seen.box is not None
    view = row.view
    x0, y0, x1, y1 = seen.box
    xs = x0 + (np.arange(cells[1]) + 0.5) * (x1 - x0) / cells[1]
    ys = y0 + (np.arange(cells[0]) + 0.5) * (y1 - y0) / cells[0]
    xs = size[1] - xs if view.mirrored else xs
    xs = view.x0 + xs * (view.x1 - view.x0) / size[1]
    ys = view.y0 + ys * (view.y1 - view.y0) / size[0]
    return np.floor(ys).astype(int), np.floor(xs).astype(int)


def _within(pixels: Int[np.ndarray, "n"], packed: Picture, axis: int) -> tuple[int, int]:
    """Return the first and the end of the cells that lie on the picture, padding left out."""
    first, end = packed.inside[1 - axis], packed.inside[3 - axis]
    found = np.flatnonzero((pixels >= first) & (pixels < end))
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)


def _instance(packed: Picture, row: Row) -> Bool[np.ndarray, "h w"] | None:
    assert row.region is not None
    runs = packed.extra.get("instances")
    if runs is None:
        return None
    found = runs[row.region] if isinstance(runs, list) and row.region < len(runs) else None
    height, width = packed.image.shape[:2]
    return from_run_lengths(found, height, width, f"instance {row.region} of {packed.key}")
