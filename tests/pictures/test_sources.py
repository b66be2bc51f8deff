"""Sources: what a command line can name, and which files each names."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from stillroom.errors import UserError
from stillroom.pictures.sources import VOC_CLASSES, parse_source


@pytest.mark.parametrize(
    "level", ["", "VOC2012", "VOCdevkit/VOC2012", "VOC2007", "VOCdevkit/VOC2007"]
)
def test_a_voc_root_is_found_at_every_level(voc: Path, tmp_path: Path, level: str) -> None:
    top = tmp_path / "top"
    (top / level).parent.mkdir(parents=True, exist_ok=True)
    voc.rename(top / level)
    source = parse_source(f"voc:{top}")
    assert list(source.splits) == ["train", "val"]
    items = source.splits["val"]
    assert [item.name for item in items] == ["2007_000004", "2007_000005"]
    assert all(item.picture.is_file() and item.mask and item.mask.is_file() for item in items)
    assert source.class_names == VOC_CLASSES and len(VOC_CLASSES) == 21


def test_a_class_file_at_the_root_names_the_classes(voc: Path) -> None:
    (voc / "classes.txt").write_text("sky\n\nroad \n")
    assert parse_source(f"voc:{voc}").class_names == ("sky", "road")
    (voc / "classes.txt").write_text("sky\nsky\n")
    with pytest.raises(UserError, match="different names"):
        parse_source(f"voc:{voc}")


def test_folders_pair_by_stem_below_both_folders(folders: Callable) -> None:
    source = folders(0)
    for name in ("a", "deep/er/a", "deep/b"):
        source.add(name)
    (source.images / "a.jpg").rename(source.images / "a.JPG")
    (source.images / "notes.txt").write_text("no picture")
    (source.images / ".hidden.jpg").write_text("no picture")
    items = parse_source(source.text).splits["train"]
    assert sorted(item.name for item in items) == ["a", "deep/b", "deep/er/a"]
    assert all(item.mask == source.masks / f"{item.name}.png" for item in items)


def test_a_linked_folder_is_followed_once(folders: Callable) -> None:
    source = folders(0)
    source.add("deep/a")
    (source.images / "deep" / "loop").symlink_to(source.images)
    items = parse_source(f"unlabelled:{source.images}").splits["train"]
    assert [(item.name, item.mask) for item in items] == [("deep/a", None)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "voc",
        "voc:",
        "coco:x",
        "voc2012:",
        "folders:.",
        "folders:.,.,.",
        "unlabelled:",
        "pipe:ls",
    ],
)
def test_an_unknown_source_is_answered_with_the_legal_forms(text: str) -> None:
    with pytest.raises(UserError, match="voc:PATH, folders:IMAGES,MASKS or unlabelled:PATH"):
        parse_source(text)


@pytest.mark.parametrize("kind", ["folders:{0}/no,{0}", "folders:{0},{0}/no", "unlabelled:{0}/no"])
def test_a_missing_folder_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"there is no folder {tmp_path}/no")):
        parse_source(kind.format(tmp_path))


def test_what_a_voc_folder_lacks_is_named(voc: Path) -> None:
    (voc / "JPEGImages").rename(voc / "other")
    with pytest.raises(UserError, match="no JPEGImages in"):
        parse_source(f"voc:{voc}")
    (voc / "other").rename(voc / "JPEGImages")
    (voc / "ImageSets" / "Segmentation" / "train.txt").unlink()
    with pytest.raises(UserError, match=r"train\.txt is missing"):
        parse_source(f"voc:{voc}")


def test_masks_inside_the_pictures_folder_are_refused(folders: Callable) -> None:
    source = folders(1)
    with pytest.raises(UserError, match="lies in the other"):
        parse_source(f"folders:{source.images.parent},{source.masks}")


def test_two_masks_for_one_picture_are_refused(folders: Callable) -> None:
    source = folders(1)
    (source.masks / "p00.bmp").write_bytes((source.masks / "p00.png").read_bytes())
    with pytest.raises(UserError, match="two masks for one picture"):
        parse_source(source.text).splits["train"]
