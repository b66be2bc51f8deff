"""Students side by side on the same pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from stillroom.metrics import predict
from stillroom.pictures.dataset import open_pictures
from stillroom.pictures.draw import colour_mask, grid
from stillroom.pictures.loader import image_tensor, mask_array
from stillroom.pictures.rows import whole_picture
from stillroom.using.student import Trained


@torch.inference_mode()
def draw_comparison(
    students: Mapping[str, Trained], shards: Path, path: Path, rows: int = 6
) -> None:
    """Write a grid of validation pictures at the first student's size: picture, truth, each
    student's mask.
    """
    pictures, size = open_pictures(shards), next(iter(students.values())).size
    shard = pictures.open(pictures.shard_ids("val")[0])
    step = max(1, len(shard) // rows)
    tiles = []
    for i in range(0, len(shard), step)[:rows]:
        picture = whole_picture(shard.read(i), size)
        image = image_tensor(picture.image)[None]
        found = [predict(s.network(image))[0].numpy() for s in students.values()]
        tiles.append(
            [
                picture.image,
                colour_mask(mask_array(picture).astype(np.int64), pictures.palette),
                *(colour_mask(mask, pictures.palette) for mask in found),
            ]
        )
    grid(tiles, ["picture", "truth", *students]).save(path)
