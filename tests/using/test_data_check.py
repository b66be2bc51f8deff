"""What is wrong with a source is found before it is packed, and the flag that is named reads it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.errors import FailureError
from stillroom.jsonfile import read_json
from stillroom.pictures.dataset import open_pictures
from stillroom.pictures.make import make_shards
from stillroom.using.data_check import check_data

COLOURS = np.array([[0, 0, 0], [10, 200, 30], [220, 20, 60]], np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight smooth pictures, and masks of classes 0, 1, 2 as plain numbers."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(8):
        random = np.random.default_rng(number)
        small = Image.fromarray(random.integers(0, 256, (5, 6, 3), np.uint8))
        small.resize((96, 80), Image.Resampling.BICUBIC).save(tmp_path / f"images/{number}.png")
        mask = np.zeros((80, 96), np.uint8)
        mask[20:60, : 10 + number] = 1 + number % 2
        Image.fromarray(mask).save(tmp_path / f"masks/{number}.png")
    return tmp_path


def rewrite(folder: Path, change) -> list[np.ndarray]:
    """Save every mask as `change` makes it; returns the masks as they were."""
    before = []
    for path in sorted((folder / "masks").iterdir()):
        before.append(np.array(Image.open(path)))
        change(before[-1], int(path.stem)).save(path)
    return before


def check(folder: Path, **more) -> dict:
    text = f"folders:{folder}/images,{folder}/masks"
    check_data(text, out=folder / "out", val_share=more.pop("val_share", 0.0), **more)
    return read_json(folder / "out" / "check.json")


def recoloured(mask, number):
    """Return a palette picture whose indices are dealt anew in every file."""
    order = np.roll(np.arange(3), number)
    image = Image.fromarray(order.astype(np.uint8)[mask])
    image.putpalette(COLOURS[np.argsort(order)].ravel().tolist())
    return image


BINARY = ("--mask-values", "0:0", "255:1")
RGB = ("--mask-colours", "0,0,0:0", "10,200,30:2", "220,20,60:1")
WAYS = {
    "plain numbers": (lambda mask, _: Image.fromarray(mask), ()),
    "black and white": (lambda mask, _: Image.fromarray((mask > 0) * np.uint8(255)), BINARY),
    "black and white in three channels": (
        lambda mask, _: Image.fromarray(np.repeat((mask[..., None] > 0) * np.uint8(255), 3, 2)),
        BINARY,
    ),
    "0 and 7": (
        lambda mask, _: Image.fromarray((mask > 0) * np.uint8(7)),
        ("--mask-values", "0:0", "7:1"),
    ),
    "spread grey levels": (
        lambda mask, _: Image.fromarray(mask * np.uint8(100)),
        ("--mask-values", "0:0", "100:1", "200:2"),
    ),
    "a class that is on no picture": (
        lambda mask, _: Image.fromarray(np.array([0, 1, 3], np.uint8)[mask]),
        ("--classes", "4"),
    ),
    "colours": (lambda mask, _: Image.fromarray(COLOURS[mask]), RGB),
    "VOC's colours": (
        lambda mask, _: Image.fromarray(COLOURS[:1].repeat(3, 0)[mask] + (mask == 2)[..., None]
        * np.array([128, 0, 128], np.uint8)),
        ("--mask-colours", "0,0,0:0", "128,0,128:5"),
    ),
    "palettes that differ": (recoloured, RGB),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_flag_that_is_named_reads_the_masks(folder: Path, way: str):
    before = rewrite(folder, WAYS[way][0])
    found = check(folder)
    assert set(found["flags"][1:]) == set(WAYS[way][1][1:]) and not found["problems"]
    name, *words = [word.removeprefix("--") for word in found["flags"]] or [""]
    flags = (
        {name.replace("-", "_"): words[0] if name == "classes" else tuple(words)} if name else {}
    )
    text = f"folders:{folder}/images,{folder}/masks"
    make_shards(text, out=folder / "shards", val_share=0.0, format="png", **flags)
    packed = open_pictures(folder / "shards")
    shard = packed.open(packed.shard_ids()[0])
    for i, mask in enumerate(before):
        stored = shard.read_mask(i)
        for value in np.unique(mask):  # one class for each, no two alike but where they were
            assert len(np.unique(stored[mask == value])) == 1
        assert stored[0, 95] == 0 and (stored[30, 0] > 0) == (way != "VOC's colours" or i % 2)
    shares = {row["name"]: row["share"] for row in found["classes"]}
    assert sum(shares.values()) == pytest.approx(1) and shares["void"] == 0


def test_masks_that_no_flag_reads_are_named_and_nothing_is_suggested(folder: Path):
    def blurred(mask, _):
        small = Image.fromarray((mask > 0) * np.uint8(255)).resize((40, 30))
        return small.resize((96, 80), Image.Resampling.BICUBIC)

    rewrite(folder, blurred)
    with pytest.raises(FailureError, match="the masks cannot be read"):
        check(folder)
    found = read_json(folder / "out" / "check.json")
    assert found["flags"] == [] and "8 masks with blurred edges" in found["notes"][0]


def test_shares_void_and_weights_are_those_of_the_pixels(folder: Path):
    def halves(_, number):
        mask = np.zeros((80, 96), np.uint8)
        mask[:, :24], mask[:40, 48:] = 1, 255
        return Image.fromarray(mask)

    rewrite(folder, halves)
    found = check(folder)
    rows = {row["name"]: row for row in found["classes"]}
    assert [rows[n]["share"] for n in ("class_0", "class_1", "void")] == [0.5, 0.25, 0.25]
    assert rows["class_1"]["weight"] / rows["class_0"]["weight"] == pytest.approx(2)
    assert rows["class_0"]["pictures"] == 8 and found["sizes"] == [[80, 96, 8]]


def test_equal_and_alike_pictures_of_two_splits_are_found_and_others_are_not(folder: Path):
    images, masks = folder / "images", folder / "masks"
    shutil.copy(images / "0.png", images / "copy.png")
    shutil.copy(masks / "0.png", masks / "copy.png")
    Image.open(images / "1.png").resize((48, 40)).save(images / "small.jpg", quality=40)
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(masks / "small.png")
    (folder / "val.txt").write_text("copy\nsmall\n7\n")
    with pytest.raises(FailureError, match="1 pictures lie in two splits"):
        check(folder, val_share=None, val_list=folder / "val.txt")
    found = read_json(folder / "out" / "check.json")
    assert found["equal"] == [["train/0", "val/copy"]]
    assert [pair[:2] for pair in found["near"]] == [["train/1", "val/small"]]


def test_broken_missing_and_mismatched_files_are_each_named(folder: Path, capsys):
    (folder / "images" / "0.png").write_bytes(b"no picture")
    (folder / "masks" / "1.png").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "masks" / "2.png")
    Image.fromarray(np.full((80, 96), 9, np.uint8)).save(folder / "masks" / "3.png")
    with pytest.raises(FailureError, match="4 pictures or masks"):
        check(folder, classes="3")
    problems = read_json(folder / "out" / "check.json")["problems"]
    words = ("0.png is not a readable", "1.png is missing", "2.png is 9x9", "no class: 9")
    assert all(any(word in one for one in problems) for word in words) and len(problems) == 4
    assert "cannot be packed: 4" in capsys.readouterr().out


def test_the_page_stands_alone_and_escapes_names(folder: Path):
    for name in ("images", "masks"):
        shutil.copy(folder / name / "0.png", folder / name / "<b>&.png")
    check(folder)
    page = (folder / "out" / "check.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;&amp;" in page
    assert page.count("<img") == page.count("data:image/jpeg") == 9 and "://" not in page


def test_coco_masks_are_those_of_the_instances(folder: Path):
    square = [[0, 0, 48, 0, 48, 80, 0, 80]]
    body = {
        "images": [{"id": 1, "file_name": "0.png", "height": 80, "width": 96}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 3, "segmentation": square}],
    }
    (folder / "a.json").write_text(json.dumps(body))
    check_data(f"coco:{folder}/images,{folder}/a.json", out=folder / "out", val_share=0.0)
    found = read_json(folder / "out" / "check.json")
    shares = {row["name"]: row["share"] for row in found["classes"]}
    assert shares == {"background": 0.5, "cat": 0.5, "void": 0} and found["flags"] == []
