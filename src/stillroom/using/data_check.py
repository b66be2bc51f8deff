"""Looking a source over before it is packed: what its masks hold and how they are read, class
shares, sizes, files that cannot be packed, and pictures that lie in two splits.

Every picture and mask is decoded once. Alike pictures are found by 64 bits: is each cell of the
picture at 8 x 9 darker than the one to its left? Unrelated pictures differ in 8 bits or more
(measured on three data sets), one that was scaled or saved once more in 4 at most.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from stillroom.errors import FailureError
from stillroom.pictures.coco import class_mask, instance_masks
from stillroom.pictures.decode import BadPicture, open_picture, to_rgb
from stillroom.pictures.labels import colour_text, shown
from stillroom.pictures.loader import num_decoders, read_ahead
from stillroom.pictures.make import BadPictures, Validation, labels_of, splits_of
from stillroom.pictures.sources import Item
from stillroom.types import IGNORE
from stillroom.using.data_page import table_text, write_report
from stillroom.using.data_report import DataReport, Seen
from stillroom.using.mask_reading import MaskSeen, Reading, recognise, see_mask

NEAR = 4  # bits of 64 in which copies of one picture differ at most
_BLOCK = 1024  # pictures that are compared with all others at once


def check_data(
    source: tyro.conf.Positional[str],
    *,
    val: str | None = None,
    val_list: Path | None = None,
    val_share: float | None = None,
    categories: tuple[str, ...] = (),
    classes: str | None = None,
    mask_values: tuple[str, ...] = (),
    mask_colours: tuple[str, ...] = (),
    out: Path = Path("runs/check-data"),
) -> None:
    """Look pictures and masks over before they are packed: label values and the flag that reads
    them, class shares, void, sizes, files that cannot be packed, pictures in two splits.

    Exit status: 0, or 1 where a file cannot be packed or one picture lies in two splits.

    Args:
        source: voc:PATH, voc2012:PATH, folders:IMAGES,MASKS, unlabelled:PATH or
            coco:IMAGES,ANNOTATIONS, as for stillroom shards
        val: another source for the validation split
        val_list: file with the names of the pictures of the validation split, one a line
        val_share: share of the pictures for the validation split, by hash of the key
        categories: those of a COCO source that become classes
        classes: number of classes, or a file with one name a line
        mask_values: how mask values become classes, e.g. 0:0 255:1
        mask_colours: how the colours of RGB masks become classes, e.g. 0,0,0:0 128,0,0:1
        out: folder for check.json and check.html, the page with overlays
    """
    bad = BadPictures(skip=True)
    chosen = Validation(val, val_list, val_share, 0)
    names, splits = splits_of(source, categories, chosen, bad)
    rows = [(split, *row) for split in sorted(splits) for row in splits[split]]
    given = bool(classes or mask_values or mask_colours)
    labels = labels_of(classes, names, mask_values, mask_colours, ()) if given else None
    workers = num_decoders()
    looked = read_ahead(rows, partial(_look, names=names), workers, depth=2 * workers)
    seen = [*tqdm(looked, total=len(rows), unit="picture", disable=None, leave=False)]
    masks = [one.mask for one in seen if one.mask is not None]
    reading = recognise(masks, names)
    if labels is not None:
        reading = Reading(kind=reading.kind, labels=labels)
    report = _report(source, seen, reading, [" ".join(str(e).split()) for e in bad.errors])
    write_report(report, out)
    print(table_text(report))
    print(f"{out / 'check.json'}, {out / 'check.html'}")
    if report.problems or report.leaks or report.is_unread:
        raise FailureError(
            f"{source} has faults",
            found=f"{len(report.problems)} pictures or masks cannot be packed,"
            f" {len(report.leaks)} pictures lie in two splits"
            f"{', the masks cannot be read' * report.is_unread}",
            fix="mend or remove them; stillroom shards --skip-bad leaves out what cannot be packed",
        )


def _report(source: str, seen: list[Seen], reading: Reading, faults: list[str]) -> DataReport:
    by_hash: dict[str, list[Seen]] = defaultdict(list)
    for one in seen:
        if one.sha256:
            by_hash[one.sha256].append(one)
    return DataReport(
        source=source,
        seen=tuple(seen),
        reading=reading,
        problems=(*faults, *(s.problem for s in seen if s.problem), *_strange(seen, reading)),
        exact=tuple(tuple(group) for group in by_hash.values() if len(group) > 1),
        near=tuple(_near(seen)),
        more=tuple(_void(seen, reading)),
    )


def _look(place: tuple[str, str, Item], names: tuple[str, ...]) -> Seen:
    """Open one picture and its mask."""
    split, key, item = place
    found: dict[str, Any] = {}
    try:
        data, image = open_picture(item.picture)
        rgb = to_rgb(image, item.picture)
        size = (rgb.height, rgb.width)
        sha256 = hashlib.sha256(data).hexdigest()
        found = {"sha256": sha256, "bits": _bits(rgb), "size": size}
        if item.instances is not None:
            mask = class_mask(item, instance_masks(item, *size), *size)
            values, counts = np.unique(mask, return_counts=True)
            pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
            found["mask"] = MaskSeen(kind="instances", size=size, pixels=pixels)
        elif item.mask is not None:
            found["mask"] = see_mask(open_picture(item.mask)[1], item.mask)
            if found["mask"].size != size:
                wrong = "x".join(map(str, found.pop("mask").size[::-1]))
                right = "x".join(map(str, size[::-1]))
                raise BadPicture(f"{item.mask} is {wrong}, its picture {item.picture} {right}")
    except BadPicture as error:
        found["problem"] = " ".join(str(error).split())
    return Seen(split=split, key=key, item=item, **found)


def _bits(image: Image.Image) -> int:
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(small[:, 1:] < small[:, :-1]).tobytes(), "big")


def _near(seen: Sequence[Seen]) -> list[tuple[Seen, Seen, int]]:
    """Return pairs of training and other pictures that are nearly the same, not in every byte."""
    train = [one for one in seen if one.split == "train" and one.bits]
    others = [one for one in seen if one.split != "train" and one.bits]
    bits = np.array([one.bits for one in train], np.uint64)
    found = []
    for start in range(0, len(others), _BLOCK):
        block = others[start : start + _BLOCK]
        theirs = np.array([one.bits for one in block], np.uint64)
        differ = np.bitwise_count(bits[:, None] ^ theirs[None])
        for i, j in zip(*np.nonzero(differ <= NEAR), strict=True):
            if train[i].sha256 != block[j].sha256:
                found.append((train[i], block[j], int(differ[i, j])))
    return sorted(found, key=lambda pair: pair[2])


def _strange(seen: Sequence[Seen], reading: Reading) -> list[str]:
    """Say of each mask with values that are no class which they are."""
    labels, found = reading.labels, []
    if labels is None:
        return []
    for one in seen:
        if one.mask is not None:
            values = one.mask.by_colour() if labels.by_colour else one.mask.pixels
            if strange := sorted(values.keys() - labels.known().keys()):
                text = shown(map(colour_text, strange) if labels.by_colour else strange)
                found.append(f"{one.item.mask} has values that are no class: {text}")
    return found


def _void(seen: Sequence[Seen], reading: Reading) -> list[str]:
    if reading.labels is None or reading.labels.by_colour:
        return []
    void = [value for value, label in reading.labels.known().items() if label == IGNORE]
    number = sum(one.mask is not None and one.mask.pixels.keys() <= set(void) for one in seen)
    return [f"{number} masks are void everywhere"] * bool(number)
