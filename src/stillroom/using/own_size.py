"""Evaluation at the pictures' own sizes: the source's files, with the student's logits brought to
each picture's size before they become classes.
"""

from collections.abc import Iterator
from typing import Any

import torch

from stillroom.errors import UserError
from stillroom.metrics import confusion, predict
from stillroom.pictures.dataset import Picture, PictureSet
from stillroom.pictures.decode import decode_stored
from stillroom.pictures.keys import key_of
from stillroom.pictures.labels import Labels, decide_labels
from stillroom.pictures.loader import mask_array, read_ahead
from stillroom.pictures.prepare import prepare
from stillroom.pictures.sources import Item, parse_source
from stillroom.using.evaluation import scores
from stillroom.using.measures import Measures
from stillroom.using.student import Trained


@torch.inference_mode()
def evaluate_at_own_size(
    trained: Trained, pictures: PictureSet, source: str, labels: Labels, split: str, device: str
) -> dict[str, Any]:
    """Return the figures of the pictures of a split as their source has them; the shards say which
    those are.

    Raises UserError where the source has none of them, they have no labels or nobody said what 0
    and 255 mean, BadPicture for a file that cannot be read.
    """
    if trained.regions is not None:
        raise UserError(
            "a student of boxes has no answer of a picture's own size", fix="no --source"
        )
    wanted = {key for shard in pictures.shard_ids(split) for key in pictures.open(shard).keys}
    items = [pair for pair in _items(source) if pair[0] in wanted]
    if not items or not pictures.classes:
        raise UserError(
            f"{source} has no labelled picture of split {split!r} of {pictures.path}",
            fix="name the source that the shards were made of, and the same --split",
        )
    masks = [item for _, item in items]
    labels = decide_labels(None, labels.names, labels.mapping, masks, labels.by_colour)
    measures = Measures(trained.num_classes)
    trained.to(device)
    k = len(pictures.classes)
    table = torch.zeros(k, k, dtype=torch.int64)
    # the next one is decoded meanwhile
    for picture in read_ahead(items, lambda pair: _decoded(*pair, labels), 1, 1):
        logits = trained.logits(picture.image)[None]
        mask = torch.from_numpy(mask_array(picture)).long()[None]
        table += confusion(predict(logits), mask, k)
        measures.add([picture.key], [picture], logits, mask)
    found = scores(table, list(pictures.classes)) | measures.figures(pictures.classes)
    del found["picture_miou"], found["confusion"], found["calibration"]
    return {**found, "source": source, "num_pictures": len(items), "num_wanted": len(wanted)}


def _items(source: str) -> Iterator[tuple[str, Item]]:
    for items in parse_source(source).splits.values():
        for item in items:
            yield key_of(item.name), item


def _decoded(key: str, item: Item, labels: Labels) -> Picture:
    ready = prepare(key, item, labels, None, "png")
    size = (ready.height, ready.width)
    mask = None if ready.mask is None else decode_stored(ready.mask, size, ("L",))
    image = decode_stored(ready.picture, size, ("RGB",))
    return Picture(key=key, image=image, mask=mask, inside=ready.inside)
