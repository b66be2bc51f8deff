"""One picture: brought to size with its mask, or refused by name."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from stillroom.errors import UserError
from stillroom.pictures.decode import BadPicture
from stillroom.pictures.labels import Labels
from stillroom.pictures.prepare import Geometry, prepare
from stillroom.pictures.sources import Item

LABELS = Labels(names=("a", "b", "c"))


def _item(source, name: str = "p00") -> Item:
    return Item(name=name, picture=source.images / f"{name}.jpg", mask=source.masks / f"{name}.png")


def _pixels(data: bytes | None) -> np.ndarray:
    assert data is not None
    return np.array(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("height", "width", "inside"),
    [
        (30, 60, (0, 16, 64, 48)),
        (60, 30, (16, 0, 48, 64)),
        (64, 64, (0, 0, 64, 64)),
        (1000, 1, (31, 0, 32, 64)),
    ],
)
def test_a_letterbox_holds_the_whole_picture_in_the_middle(
    height: int, width: int, inside: tuple
) -> None:
    assert Geometry(height=64, width=64, fit="letterbox").inside(height, width) == inside
    assert Geometry(height=64, width=64).inside(height, width) == (0, 0, 64, 64)


def test_letterbox_padding_is_grey_in_the_picture_and_ignored_in_the_mask(
    folders: Callable,
) -> None:
    geometry = Geometry(height=64, width=64, fit="letterbox")
    row = prepare("p00", _item(folders(1)), LABELS, geometry, "png")
    image, mask = _pixels(row.picture), _pixels(row.mask)
    assert row.inside == (0, 8, 64, 56) and (row.height, row.width) == (64, 64)
    padding = np.ones((64, 64), bool)
    padding[8:56] = False
    assert (image[padding] == 128).all() and (mask[padding] == 255).all()
    source = np.array(Image.open(_item(folders(1)).mask))
    rows, columns = (np.arange(48) + 0.5) / 2, (np.arange(64) + 0.5) / 2
    nearest = source[rows.astype(int)][:, columns.astype(int)]
    assert (mask[8:56] == nearest).all()


def test_shrinking_averages_pictures_but_never_labels(folders: Callable) -> None:
    source = folders(1)
    stripes = np.zeros((24, 32), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(source.images / "p00.jpg", quality=100)
    row = prepare("p00", _item(source), LABELS, Geometry(height=6, width=8), "png")
    middle = _pixels(row.picture)[:, 1:-1]
    assert np.abs(middle.astype(int) - 100).max() < 12
    assert set(np.unique(_pixels(row.mask))) <= {0, 1, 2, 255}


def test_an_unresized_jpeg_keeps_its_bytes(folders: Callable) -> None:
    item = _item(folders(1))
    assert prepare("p00", item, LABELS, None, "jpg").picture == item.picture.read_bytes()
    same_size = Geometry(height=24, width=32, fit="letterbox")
    assert prepare("p00", item, LABELS, same_size, "jpg").picture == item.picture.read_bytes()
    as_png = prepare("p00", item, LABELS, None, "png").picture
    assert (_pixels(as_png) == np.array(Image.open(item.picture))).all()


def test_resized_jpegs_are_not_subsampled(folders: Callable) -> None:
    row = prepare("p00", _item(folders(1)), LABELS, Geometry(height=16, width=16), "jpg")
    image = Image.open(io.BytesIO(row.picture))
    assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


def test_a_mask_of_another_size_is_refused_with_both_sizes(folders: Callable) -> None:
    item = _item(folders(1))
    Image.new("L", (30, 24)).save(item.mask)
    with pytest.raises(BadPicture, match=r"p00\.png is not the size of its picture") as error:
        prepare("p00", item, LABELS, None, "jpg")
    assert error.value.found == "mask 30x24" and str(error.value.wanted).startswith("32x24")


def test_a_missing_half_of_a_pair_is_named(folders: Callable) -> None:
    source = folders(2)
    _item(source).picture.unlink()
    with pytest.raises(BadPicture, match=r"p00\.jpg is missing\n.*only its mask"):
        prepare("p00", _item(source), LABELS, None, "jpg")
    _item(source, "p01").mask.unlink()
    with pytest.raises(BadPicture, match=r"p01\.jpg has no mask"):
        prepare("p01", _item(source, "p01"), LABELS, None, "jpg")


def test_the_source_name_is_kept_where_it_is_not_the_key(folders: Callable) -> None:
    source = folders(0)
    source.add("a.b")
    row = prepare("a=2Eb", _item(source, "a.b"), LABELS, None, "jpg")
    assert row.extra == b'{"source": "a.b"}'


def test_a_size_out_of_range_is_refused() -> None:
    for height in (0, 10_001):
        with pytest.raises(UserError, match="--size"):
            Geometry(height=height, width=64)
