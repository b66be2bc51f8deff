"""`coco:IMAGES,ANNOTATIONS`: a folder of pictures and COCO's JSON of what is on them.

Polygons and run lengths become masks by pycocotools, which is what the field compares with.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco_mask

from stillroom.errors import UserError
from stillroom.pictures.decode import BadPicture
from stillroom.pictures.run_lengths import run_lengths
from stillroom.pictures.sources import Instance, Item, Source, refuse_elsewhere
from stillroom.types import IGNORE

_MAX_INSTANCES, _MIN_SIDE_PX = 10, 16  # that have rows of their own, the largest; in packed pixels
_FIX = "give the instances JSON of the COCO format"


class _Image(msgspec.Struct):
    id: int
    file_name: str
    height: int
    width: int


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    segmentation: list[list[float]] | dict[str, Any] = []
    iscrowd: int = 0


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotations(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def coco_source(images: Path, path: Path, categories: Sequence[str]) -> Source:
    """Return the source of some categories by name, none = all, which are classes 1 and up. Raises
    UserError.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Annotations)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"cannot read annotations from {path}: {error}", fix=_FIX) from None
    known = [category.name for category in sorted(found.categories, key=lambda c: c.id)]
    if missing := [name for name in categories if name not in known]:
        raise UserError(
            f"{path} has no category {', '.join(missing)}", wanted=f"some of {', '.join(known)}"
        )
    chosen = tuple(name for name in known if name in categories or not categories)
    if len(set(chosen)) != len(chosen) or not 1 <= len(chosen) < IGNORE or "background" in chosen:
        raise UserError(f"{path} does not name classes", found=f"{len(chosen)} categories")
    names = ("background", *chosen)
    return Source(class_names=names, splits={"train": list(_items(images, found, names))})


def _items(images: Path, annotations: _Annotations, names: tuple[str, ...]) -> Iterator[Item]:
    """Yield every picture that an instance of a class lies on, a crowd not counted."""
    classes = {name: number for number, name in enumerate(names)}
    label_of = {c.id: classes[c.name] for c in annotations.categories if c.name in classes}
    found: dict[int, list[Instance]] = {}
    for one in annotations.annotations:
        if label := label_of.get(one.category_id):
            label = IGNORE if one.iscrowd else label
            instance = Instance(label=label, segmentation=one.segmentation)
            found.setdefault(one.image_id, []).append(instance)
    for image in annotations.images:
        instances = found.get(image.id, [])
        if any(instance.label != IGNORE for instance in instances):
            refuse_elsewhere(image.file_name, images)
            yield Item(
                name=str(Path(image.file_name).with_suffix("")),
                picture=images / image.file_name,
                instances=tuple(instances),
            )


def instance_masks(item: Item, height: int, width: int) -> list[UInt8[np.ndarray, "h w"]]:
    """Return a mask of each instance of a picture, 1 on it, else 0; raises BadPicture."""
    assert item.instances is not None
    masks = []
    for instance in item.instances:
        shape: Any = instance.segmentation
        try:
            if isinstance(shape, list):
                runs = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
            else:
                runs = coco_mask.frPyObjects(_whole(shape), height, width)
            mask = coco_mask.decode(runs)
        except Exception as error:  # pycocotools raises what it meets
            raise BadPicture(f"{item.picture} has a segmentation that is none: {error}") from None
        if mask.shape != (height, width):
            raise BadPicture(
                f"the annotations of {item.picture} are not of its size",
                found=f"{mask.shape[1]}x{mask.shape[0]}",
                wanted=f"{width}x{height}, as the (upright) picture",
            )
        masks.append(mask)
    return masks


def _whole(shape: dict[str, Any]) -> Any:
    """Return run lengths as a list; raises ValueError unless they cover their size exactly, for
    pycocotools leaves the rest of a mask as it finds it.
    """
    counts = shape["counts"]
    counts = _unpacked(counts) if isinstance(counts, str) else counts
    height, width = shape["size"]
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"runs of {sum(counts)} pixels for {height} x {width}")
    return {"size": [height, width], "counts": counts}


def _unpacked(text: str) -> list[int]:
    """Return the run lengths that COCO's compressed form holds: five bits a character, the sixth
    says that more follow; from the fourth on, what a run has more than the one before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode():
        value |= (code - 48 & 31) << shift
        shift += 5
        if not code - 48 & 32:
            value -= (code - 48 >> 4 & 1) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def class_mask(
    item: Item, masks: Sequence[UInt8[np.ndarray, "h w"]], height: int, width: int
) -> UInt8[np.ndarray, "h w"]:
    """Return one mask of all instances: smaller ones lie on larger ones, crowds below all."""
    assert item.instances is not None
    drawn = np.zeros((height, width), np.uint8)
    pairs = zip(item.instances, masks, strict=True)
    order = sorted(pairs, key=lambda pair: (pair[0].label != IGNORE, -np.count_nonzero(pair[1])))
    for one, mask in order:
        drawn[mask == 1] = one.label
    return drawn


def regions_of(item: Item, masks: Sequence[UInt8[np.ndarray, "y x"]]) -> dict[str, list[list[int]]]:
    """Return `boxes` [x0, y0, x1, y1] of the instances that have rows of their own, and their
    `instances`: run lengths of pixels, off first, column by column, as COCO's uncompressed ones.

    `masks` are those of the packed picture (1 = the instance). At most ten, the largest first, of
    at least 16 pixels each way; crowds have none.
    """
    assert item.instances is not None
    found = []
    for instance, mask in zip(item.instances, masks, strict=True):
        ys, xs = np.nonzero(mask == 1)
        if instance.label == IGNORE or not len(ys):
            continue
        box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
        if box[2] - box[0] >= _MIN_SIDE_PX and box[3] - box[1] >= _MIN_SIDE_PX:
            found.append((len(ys), box, run_lengths(mask == 1)))
    found.sort(key=lambda one: -one[0])
    kept = found[:_MAX_INSTANCES]
    return {"boxes": [box for _, box, _ in kept], "instances": [runs for _, _, runs in kept]}
