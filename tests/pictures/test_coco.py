"""COCO's instances become masks, and rows of their own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from stillroom.errors import UserError
from stillroom.pictures.coco import run_lengths
from stillroom.pictures.dataset import PictureShard, open_pictures
from stillroom.pictures.decode import BadPicture
from stillroom.pictures.make import make_shards

HEIGHT, WIDTH = 40, 60
PERSON, DOG, CAT = 1, 18, 17


def square(x0: int, y0: int, x1: int, y1: int) -> list[list[float]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def instance(image: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    found = {"image_id": image, "category_id": category, "iscrowd": crowd, "id": 7}
    return found | {"segmentation": segmentation}


def crowd_of(mask: np.ndarray) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": run_lengths(mask)}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two people and a dog under a crowd; a dog alone; a crowd alone; nothing."""
    (tmp_path / "images").mkdir()
    for number in range(1, 5):
        noise = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"p{number}.jpg")
    corner = np.zeros((HEIGHT, WIDTH), bool)
    corner[:10, :30] = True
    write(
        tmp_path,
        [
            instance(1, PERSON, square(0, 0, 20, 40)),
            instance(1, PERSON, square(30, 0, 60, 40)),
            instance(1, DOG, square(40, 10, 50, 20)),
            instance(1, PERSON, crowd_of(corner), crowd=1),
            instance(2, DOG, square(5, 5, 30, 30)),
            instance(3, PERSON, crowd_of(corner), crowd=1),
        ],
    )
    return tmp_path


def write(folder: Path, annotations: list[dict[str, Any]]) -> None:
    names = {PERSON: "person", CAT: "cat", DOG: "dog"}
    body = {
        "images": [
            {"id": n, "file_name": f"p{n}.jpg", "height": HEIGHT, "width": WIDTH}
            for n in range(1, 5)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in names.items()],
    }
    (folder / "instances.json").write_text(json.dumps(body))


def packed(folder: Path, *, out: str = "shards", **options: Any) -> tuple[Any, PictureShard]:
    source = f"coco:{folder / 'images'},{folder / 'instances.json'}"
    make_shards(source, out=folder / out, val_share=0.0, format="png", **options)
    pictures = open_pictures(folder / out)
    return pictures, pictures.open(pictures.shard_ids("train")[0])


def test_all_categories_are_classes_in_the_order_of_their_numbers(coco: Path):
    pictures, shard = packed(coco)
    assert pictures.classes == ("background", "person", "cat", "dog")
    assert shard.keys == ("p1", "p2")  # what has no instance but a crowd is left out


def test_small_instances_lie_on_large_ones_and_crowds_below_all(coco: Path):
    mask = packed(coco)[1].read(0).mask
    wanted = np.zeros((HEIGHT, WIDTH), np.uint8)
    wanted[:10, :30] = 255
    wanted[:, :20] = wanted[:, 30:] = 1
    wanted[10:20, 40:50] = 3
    np.testing.assert_array_equal(mask, wanted)


def test_chosen_categories_alone_are_classes(coco: Path):
    pictures, shard = packed(coco, categories=("person",))
    assert (pictures.classes, shard.keys) == (("background", "person"), ("p1",))
    assert set(np.unique(shard.read(0).mask)) == {0, 1, 255}


def test_each_instance_of_sixteen_pixels_has_its_box_and_its_own_pixels(coco: Path):
    extra = packed(coco, size=(80, 120))[1].extra(0)
    assert extra["boxes"] == [[60, 0, 120, 80], [0, 0, 40, 80], [80, 20, 100, 40]]
    own = np.zeros((80, 120), bool)
    own[20:40, 80:100] = True
    assert extra["instances"][2] == run_lengths(own)
    assert sum(extra["instances"][0]) == 80 * 120
    assert packed(coco, out="small", size=(20, 30))[1].extra(0)["boxes"] == []


def test_run_lengths_begin_with_what_is_off_and_go_down_the_columns():
    mask = np.array([[1, 0], [1, 1]], bool)
    assert run_lengths(mask) == [0, 2, 1, 1]
    assert run_lengths(~mask) == [2, 1, 1]


def test_compressed_run_lengths_are_those_of_pycocotools(coco: Path):
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.5
    mask[:, 10:50] = False
    mask[5:, 50:] = True  # runs of one and of hundreds of pixels, growing and shrinking
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    write(coco, [instance(1, PERSON, runs | {"counts": runs["counts"].decode()})])
    found = packed(coco, categories=("person",))[1].read(0).mask
    assert found is not None and (found == mask).all()


@pytest.mark.parametrize(
    "shape",
    [
        {"size": [3, 3], "counts": [9]},  # of another size than the picture
        {"size": [HEIGHT, WIDTH], "counts": [9]},  # short of it
        {"size": [HEIGHT, WIDTH], "counts": [-9, HEIGHT * WIDTH + 9]},
        {"size": [HEIGHT, WIDTH], "counts": "5"},
        {"size": [HEIGHT, WIDTH], "counts": "XX"},
        {"counts": "x"},
    ],
)
def test_a_segmentation_that_is_none_names_its_picture(coco: Path, shape: dict[str, Any]):
    write(coco, [instance(1, PERSON, shape)])
    with pytest.raises(BadPicture, match=r"p1\.jpg"):
        packed(coco)


def test_what_is_no_file_of_annotations_is_refused(coco: Path):
    (coco / "instances.json").write_text('{"images": 3}')
    with pytest.raises(UserError, match="cannot read annotations"):
        packed(coco)


def test_an_unknown_category_is_answered_with_the_known_ones(coco: Path):
    with pytest.raises(UserError, match="person, cat, dog"):
        packed(coco, categories=("horse",))


def test_categories_are_for_coco_alone(coco: Path):
    with pytest.raises(UserError, match="COCO's"):
        make_shards(f"unlabelled:{coco / 'images'}", out=coco / "s", categories=("person",))
