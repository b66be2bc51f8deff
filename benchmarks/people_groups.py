"""Several people on one picture, each with a mask of its own: cut-outs of a VOC folder of single
people, pasted over another of its pictures.

    python benchmarks/people_groups.py PEOPLE --out GROUPS
    python tools/make_shards.py coco:GROUPS/train,GROUPS/train.json \\
        --val coco:GROUPS/val,GROUPS/val.json --out shards/groups --size 128 128

For the region task where no instances are at hand. Every picture has its own person and one or two
others, .6 to 1 times as large, that may hide it; a mask is what can still be seen of its person.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stillroom.pictures.run_lengths import run_lengths

SIDE = 384  # pixels, both ways


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    add = parser.add_argument
    add("source", type=Path, help="VOC folder whose masks are 0, and 1 for one person")
    add("--out", type=Path, required=True)
    add("--train", type=int, default=400, help="pictures")
    add("--val", type=int, default=100, help="pictures")
    add("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for split in ("train", "val"):
        write_split(arguments, split, getattr(arguments, split))


def write_split(arguments: argparse.Namespace, split: str, count: int) -> None:
    """Write pictures of people of this split alone, and COCO's JSON of them."""
    generator = np.random.default_rng([arguments.seed, split == "val"])
    lists = arguments.source / "ImageSets" / "Segmentation" / f"{split}.txt"
    names = lists.read_text().split()
    folder = arguments.out / split
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        chosen = generator.choice(names, size=int(generator.integers(2, 4)), replace=False)
        picture, masks = group([read(arguments.source, name) for name in chosen], generator)
        name = f"{split}-{number:04d}.jpg"
        Image.fromarray(picture).save(folder / name, quality=95)
        images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        annotations += [annotation(number, mask) for mask in masks if mask.any()]
    categories = [{"id": 1, "name": "person"}]
    body = {"images": images, "annotations": annotations, "categories": categories}
    (arguments.out / f"{split}.json").write_text(json.dumps(body))


def read(source: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture and where its person is, stretched to `SIDE`."""
    size = (SIDE, SIDE)
    picture = Image.open(source / "JPEGImages" / f"{name}.jpg").convert("RGB").resize(size)
    mask = Image.open(source / "SegmentationClass" / f"{name}.png")
    return np.array(picture), np.array(mask.resize(size, Image.Resampling.NEAREST)) == 1


def group(
    people: list[tuple[np.ndarray, np.ndarray]], generator: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the first picture with the others' people pasted on it, and what is seen of each."""
    picture, masks = people[0][0].copy(), [people[0][1]]
    for image, mask in people[1:]:
        side = int(SIDE * generator.uniform(0.6, 1.0))
        small = np.array(Image.fromarray(image).resize((side, side)))
        cut = np.array(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))
        x = int(generator.integers(-side // 3, SIDE - 2 * side // 3))
        y = int(generator.integers(0, SIDE - side + 1))
        placed = np.zeros((SIDE, SIDE), bool)
        left, right = max(0, x), min(SIDE, x + side)
        placed[y : y + side, left:right] = cut[:, left - x : right - x]
        picture[placed] = small[:, left - x : right - x][cut[:, left - x : right - x]]
        masks = [before & ~placed for before in masks] + [placed]
    return picture, masks


def annotation(image: int, mask: np.ndarray) -> dict[str, Any]:
    segmentation = {"size": list(mask.shape), "counts": run_lengths(mask)}
    return {"image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": segmentation}


if __name__ == "__main__":
    main()
