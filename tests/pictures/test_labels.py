"""Mask values become classes only as the user said; what is no class is listed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.errors import UserError
from stillroom.pictures.decode import BadPicture
from stillroom.pictures.labels import (
    Labels,
    decide_labels,
    palette_of,
    parse_mask_colours,
    parse_mask_values,
    shown,
)
from stillroom.pictures.sources import Item

MASK = Path("m.png")


def _items(folder: Path, *masks: list[int]) -> list[Item]:
    items = []
    for number, values in enumerate(masks):
        path = folder / f"{number}.png"
        Image.fromarray(np.array([values], np.uint8)).save(path)
        items.append(Item(name=str(number), picture=path, mask=path))
    return items


def test_classes_and_ignore_pass_and_anything_else_is_listed() -> None:
    labels = Labels(names=("a", "b"))
    assert labels.translate(np.array([[0, 1, 255]]), MASK).tolist() == [[0, 1, 255]]
    with pytest.raises(BadPicture) as error:
        labels.translate(np.array([[0, 7, 2, 7, 70000, -1]]), MASK)
    assert error.value.found == "-1, 2, 7, 70000"
    assert "m.png has label values outside the classes" in str(error.value)
    assert "0 to 1, or 255 for ignore" in str(error.value)


def test_mapped_values_are_translated_and_unmapped_ones_refused() -> None:
    labels = Labels(names=("a", "b"), mapping=((0, 0), (255, 1), (9, 255)))
    assert labels.translate(np.array([[0, 255, 9]]), MASK).tolist() == [[0, 1, 255]]
    with pytest.raises(BadPicture, match=r"found:  1\n"):
        labels.translate(np.array([[0, 1]]), MASK)


def test_0_255_masks_are_called_by_their_name_and_not_mapped_unasked(tmp_path: Path) -> None:
    items = _items(tmp_path, [0, 0], [0, 255])
    for classes in (None, "2", "21"):
        with pytest.raises(UserError, match="0/255 masks of a binary task") as error:
            decide_labels(classes, (), (), items)
        assert error.value.fix == "--mask-values 0:0 255:1"
    labels = decide_labels(None, (), ((0, 0), (255, 1)), items)
    assert labels.names == ("class_0", "class_1")


def test_void_in_a_mask_among_others_is_not_taken_for_a_binary_task(tmp_path: Path) -> None:
    items = _items(tmp_path, [0, 255], [0, 1])
    assert decide_labels("2", (), (), items).names == ("class_0", "class_1")


def test_the_number_of_classes_is_found_where_the_masks_leave_no_doubt(tmp_path: Path) -> None:
    assert len(decide_labels(None, (), (), _items(tmp_path, [0, 2], [1, 255])).names) == 3
    with pytest.raises(UserError, match="cannot tell the number of classes") as error:
        decide_labels(None, (), (), _items(tmp_path, [0, 3], [1, 1]))
    assert error.value.found == "values 0, 1, 3"


def test_given_names_win_over_the_sources(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("sky\nroad\n")
    file = str(tmp_path / "names.txt")
    assert decide_labels(file, ("x",), (), []).names == ("sky", "road")
    assert decide_labels(None, ("x",), (), []).names == ("x",)
    for wrong in ("0", "256", str(tmp_path / "none.txt")):
        with pytest.raises(UserError):
            decide_labels(wrong, (), (), [])


@pytest.mark.parametrize("text", ["", "0", "0:", ":1", "a:1", "0:-1", "0:256", "70000:1"])
def test_mask_values_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="not understood"):
        parse_mask_values((text,))


def test_a_value_cannot_mean_two_things_or_a_class_that_is_not_there() -> None:
    with pytest.raises(UserError, match="not understood"):
        parse_mask_values(("0:0", "0:1"))
    with pytest.raises(UserError, match="a class that does not exist"):
        decide_labels("2", (), ((0, 0), (1, 2)), [])


def test_the_palette_is_that_of_pascal_voc() -> None:
    wanted = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    palette = palette_of(255)
    assert list(palette[:5]) == wanted
    assert palette[20] == (0, 64, 128) and palette[15] == (192, 128, 128)
    assert len(set(palette)) == 255


def test_long_lists_are_cut() -> None:
    assert shown(range(14)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_the_classes_that_were_named_whatever_the_kind_of_file(tmp_path, mode):
    colours = np.array([[[0, 0, 0], [128, 0, 0], [224, 224, 192]]], np.uint8)
    image = Image.fromarray(colours)
    image = image.quantize(4, dither=Image.Dither.NONE) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "m.png")
    pairs = parse_mask_colours(("0,0,0:0", "128,0,0:1", "224,224,192:255"))
    labels = decide_labels(None, (), pairs, [], by_colour=True)
    assert labels.names == ("class_0", "class_1")
    assert labels.read(tmp_path / "m.png").tolist() == [[0, 1, 255]]


def test_a_colour_without_a_class_is_refused_by_its_name(tmp_path: Path) -> None:
    colours = np.array([[[0, 0, 0], [255, 0, 1]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "m.png")
    labels = Labels(names=("a", "b"), mapping=((0, 0), (255, 1)), by_colour=True)
    with pytest.raises(BadPicture, match="colours outside the classes") as error:
        labels.read(tmp_path / "m.png")
    assert error.value.found == "255,0,1" and error.value.wanted == "0,0,0, 0,0,255"


@pytest.mark.parametrize("text", ["0,0:1", "0,0,256:1", "0,0,0:256", "0,0,0", "a,b,c:1"])
def test_what_is_no_colour_and_class_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--mask-colours not understood"):
        parse_mask_colours((text,))
    with pytest.raises(UserError, match="each colour once"):
        parse_mask_colours(("0,0,0:0", "0,0,0:1"))
