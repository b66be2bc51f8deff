"""The pixels of each class are those of the training masks, counted again once a label changes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.errors import UserError
from stillroom.pictures.class_pixels import class_pixels
from stillroom.pictures.dataset import PictureShard, open_pictures
from stillroom.pictures.keys import is_label_used
from stillroom.pictures.make import make_shards


def pack(folder: Path, change: int | None = None) -> Path:
    """Eight pictures of 4 x 6 px in two shards: of picture i, i pixels are class 1, i + 1 void and
    the others class 0; in that of `change` all are class 2. Letterboxed to 8 x 12.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(8):
        mask = np.zeros(24, np.uint8)
        mask[:i], mask[i : 2 * i + 1] = 1, 255
        mask = np.full_like(mask, 2) if i == change else mask
        Image.new("RGB", (6, 4)).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask.reshape(4, 6)).save(folder / "masks" / f"{i}.png")
    make_shards(
        f"folders:{folder / 'images'},{folder / 'masks'}",
        out=folder / "shards",
        val_share=0.0,
        size=(4, 8),
        fit="letterbox",
        format="png",
        shard_rows=4,
        classes="3",
    )
    return folder / "shards"


def counted(keys: range | list[int], change: int | None = None) -> tuple[int, ...]:
    ones, void = sum(keys), sum(i + 1 for i in keys)
    if change is None:
        return 24 * len(keys) - ones - void, ones, 0
    ones, void = ones - change, void - change - 1
    return 24 * (len(keys) - 1) - ones - void, ones, 24


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """The masks that are decoded."""
    seen, read = [], PictureShard.read_mask
    monkeypatch.setattr(PictureShard, "read_mask", lambda s, i: (seen.append(i), read(s, i))[1])
    return seen


def test_pixels_are_those_of_the_masks_without_void_and_padding(tmp_path, reads):
    pictures = open_pictures(pack(tmp_path / "a"))
    assert class_pixels(pictures) == counted(range(8))
    assert len(reads) == 8
    assert class_pixels(pictures) == counted(range(8))
    assert len(reads) == 8  # from the file beside the shards
    written = json.loads((pictures.path / "class-pixels-1.json").read_text())
    assert written["pixels"] == list(counted(range(8)))


def test_a_label_share_counts_its_own_labels_only(tmp_path):
    pictures = open_pictures(pack(tmp_path / "a"))
    used = [i for i in range(8) if is_label_used(str(i), 0.5)]
    assert 0 < len(used) < 8
    assert class_pixels(pictures, 0.5) == counted(used) != class_pixels(pictures)


def test_a_corrected_label_is_counted_though_the_pictures_are_the_same(tmp_path):
    shards = pack(tmp_path / "a")
    before = open_pictures(shards)
    class_pixels(before)
    kept = (shards / "class-pixels-1.json").read_bytes()
    corrected = open_pictures(pack(tmp_path / "a", change=5))
    (shards / "class-pixels-1.json").write_bytes(kept)
    assert corrected.digest == before.digest
    assert class_pixels(corrected) == counted(range(8), change=5)
    assert class_pixels(open_pictures(shards)) == counted(range(8), change=5)


def test_a_damaged_file_is_counted_again(tmp_path):
    pictures = open_pictures(pack(tmp_path / "a"))
    found = class_pixels(pictures)
    path = pictures.path / "class-pixels-1.json"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    assert class_pixels(pictures) == found


def test_where_it_cannot_be_kept_that_is_said_and_it_is_counted_all_the_same(
    tmp_path, monkeypatch, capsys
):
    pictures = open_pictures(pack(tmp_path / "a"))

    def full(path, body):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stillroom.pictures.class_pixels.write_json", full)
    assert class_pixels(pictures) == counted(range(8))
    assert "class-pixels-1.json: No space left" in capsys.readouterr().out


def test_a_label_that_is_no_class_is_refused(tmp_path):
    pictures = open_pictures(pack(tmp_path / "a"))
    pictures.classes = pictures.classes[:1]
    with pytest.raises(UserError, match=r"no class(.|\n)*found:  1\n"):
        class_pixels(pictures)
