"""How many pixels of the training masks each class has: counted once, kept beside the shards.

`class-pixels-<share>.json` names the shards that it was counted on by sha256, masks included, so
that it is counted again once a label is corrected. Costs one decode of each mask that is used.
"""

from contextlib import suppress
from typing import Annotated

import msgspec
import numpy as np

from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import Count, Declared, Sha256, digest, read_json, write_json
from stillroom.pictures.dataset import PictureSet
from stillroom.pictures.keys import is_label_used
from stillroom.pictures.loader import num_decoders, read_ahead
from stillroom.types import IGNORE, ShardId

FORMAT = "stillroom class pixels 1"


class ClassPixels(Declared, frozen=True):
    """The file: pixels of each class in the training masks that a label share uses."""

    format: str
    label_share: float
    shards: Sha256  # of the numbers and sha256 of the training shards
    pixels: Annotated[tuple[Count, ...], msgspec.Meta(max_length=IGNORE)]


def class_pixels(pictures: PictureSet, label_share: float = 1.0) -> tuple[int, ...]:
    """Return the pixels of each class, void left out, in the masks of the training split whose
    labels are used; raises DamageError for a mask that cannot be read.

    The file is written where it can be; where not, it is counted again the next time.
    """
    path = pictures.path / f"class-pixels-{label_share:g}.json"
    shards = [[info.number, info.sha256] for info in pictures.shards if info.split == "train"]
    wanted = digest({"shards": shards})
    with suppress(FileNotFoundError, DamageError):  # it holds nothing that the masks do not
        kept: ClassPixels = read_json(path, ClassPixels)
        stated = (kept.format, kept.label_share, kept.shards, len(kept.pixels))
        if stated == (FORMAT, label_share, wanted, len(pictures.classes)):
            return kept.pixels
    counted = _count(pictures, label_share)
    found = ClassPixels(format=FORMAT, label_share=label_share, shards=wanted, pixels=counted)
    try:
        write_json(path, found)
    except OSError as error:
        print(f"the pixels of each class are not kept: {path}: {error.strerror}", flush=True)
    return counted


def _count(pictures: PictureSet, label_share: float) -> tuple[int, ...]:
    places = (
        (shard, i)
        for shard in pictures.shard_ids("train")
        for i, key in enumerate(pictures.open(shard).keys)
        if pictures.open(shard).has_mask(i) and is_label_used(key, label_share)
    )
    workers, num_classes = num_decoders(), len(pictures.classes)

    def read(place: tuple[ShardId, int]) -> np.ndarray:
        mask = pictures.open(place[0]).read_mask(place[1])
        return np.bincount(mask.ravel(), minlength=IGNORE + 1)

    total = np.zeros(IGNORE + 1, np.int64)
    for counts in read_ahead(places, read, workers, depth=2 * workers):
        total += counts
    if total[num_classes:IGNORE].any():
        raise UserError(
            f"masks of {pictures.path} have labels that are no class",
            found=", ".join(str(i) for i in range(num_classes, IGNORE) if total[i]),
            wanted=f"0 to {num_classes - 1}, or {IGNORE}",
        )
    return tuple(int(value) for value in total[:num_classes])
