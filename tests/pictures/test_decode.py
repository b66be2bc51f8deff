"""Foreign pictures become upright 8-bit RGB, masks numbers; or one error names the file."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.pictures.decode import (
    BadPicture,
    can_keep_bytes,
    decode_labels,
    decode_stored,
    encode_mask,
    encode_picture,
    open_picture,
    to_rgb,
)


def _rgb(path: Path) -> np.ndarray:
    return np.array(to_rgb(open_picture(path)[1], path))


def _png(width: int, height: int, bits: int, pixels: bytes) -> bytes:
    """An RGB PNG of any depth and stated size, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_grey_palette_and_bilevel_pictures_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(grey).save(tmp_path / "l.png")
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png")
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "1.png")
    assert (_rgb(tmp_path / "l.png") == grey[:, :, None]).all()
    assert _rgb(tmp_path / "p.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert _rgb(tmp_path / "1.png").tolist() == [[[255] * 3, [0] * 3]]


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[9, 8, 7, 255], [9, 8, 7, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    Image.fromarray(pixels[:, :, 2:]).save(tmp_path / "la.png")
    assert _rgb(tmp_path / "rgba.png").tolist() == [[[9, 8, 7], [255] * 3]]
    assert _rgb(tmp_path / "la.png").tolist() == [[[7] * 3, [255] * 3]]


def test_cmyk_jpegs_become_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(_rgb(tmp_path / "cmyk.jpg").astype(int) - [255, 0, 0]).max() <= 3


def test_16_bit_grey_is_scaled_and_16_bit_rgb_is_written_anew(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "i16.png")
    assert _rgb(tmp_path / "i16.png")[0, :, 0].tolist() == [0, 1, 255]
    (tmp_path / "rgb16.png").write_bytes(
        _png(2, 1, 16, b"\0" + struct.pack(">6H", 0xFFFF, 0, 0, 0, 0xFFFF, 0))
    )
    data, image = open_picture(tmp_path / "rgb16.png")
    assert not can_keep_bytes(data, image, "png")
    assert _rgb(tmp_path / "rgb16.png").tolist() == [[[255, 0, 0], [0, 255, 0]]]


def test_floats_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(BadPicture, match=r"f\.tif has pixels of unknown meaning"):
        _rgb(tmp_path / "f.tif")


def test_exif_orientation_is_applied_and_its_bytes_are_not_kept(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right of the stored picture
    stored = Image.new("RGB", (16, 8), "black")
    stored.paste("white", (8, 0, 16, 8))
    stored.save(tmp_path / "turned.jpg", exif=exif)
    data, image = open_picture(tmp_path / "turned.jpg")
    upright = np.array(to_rgb(image, tmp_path / "turned.jpg"))
    assert upright.shape == (16, 8, 3)
    assert not can_keep_bytes(data, image, "jpg")
    stored.save(tmp_path / "upright.jpg")
    assert can_keep_bytes(*open_picture(tmp_path / "upright.jpg"), "jpg")
    turned = Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270)
    assert (upright == np.array(turned)).all()


def test_only_files_of_the_wanted_format_keep_their_bytes(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.jpg")
    image.convert("L").save(tmp_path / "l.jpg")
    kept = {
        (name, wanted): can_keep_bytes(*open_picture(tmp_path / name), wanted)
        for name in ("a.png", "a.jpg", "l.jpg")
        for wanted in ("jpg", "png")
    }
    assert [pair for pair, keep in kept.items() if keep] == [("a.png", "png"), ("a.jpg", "jpg")]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_and_foreign_files_are_named(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encode_picture(Image.fromarray(pixels), suffix)
    for content in (b"", b"no picture", whole[:40], whole[: len(whole) // 2]):
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(content)
        with pytest.raises(BadPicture, match=rf"x\.{suffix} is not a readable picture"):
            open_picture(path)


def test_a_picture_above_100_megapixels_is_refused_unread(tmp_path: Path) -> None:
    for height in (10_001, 30_000):
        (tmp_path / "huge.png").write_bytes(_png(10_000, height, 8, b""))
        with pytest.raises(BadPicture, match=r"huge\.png has more than 100 megapixels"):
            open_picture(tmp_path / "huge.png")


def test_masks_of_every_one_channel_kind_are_numbers(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 255]], np.uint8)
    grey = Image.fromarray(values)
    palette = grey.copy()
    palette.putpalette([200] * 768)
    kinds = {
        "grey": grey,
        "palette": palette,
        "same": grey.convert("RGB"),
        "16": Image.fromarray(values.astype(np.uint16)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        _, opened = open_picture(tmp_path / f"{name}.png")
        assert decode_labels(opened, tmp_path / name).tolist() == values.tolist(), name
    Image.fromarray(values > 0).save(tmp_path / "1.png")
    labels = decode_labels(open_picture(tmp_path / "1.png")[1], tmp_path / "1.png")
    assert labels.tolist() == [[0, 1], [1, 1]]


def test_colour_and_jpeg_masks_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (128, 0, 0)).save(tmp_path / "colour.png")
    Image.new("L", (4, 4)).save(tmp_path / "lossy.jpg")
    for name, reason in (("colour.png", "no mask of class numbers"), ("lossy.jpg", "JPEG mask")):
        with pytest.raises(BadPicture, match=reason):
            decode_labels(open_picture(tmp_path / name)[1], tmp_path / name)


def test_a_stored_picture_of_another_size_is_refused_undecoded() -> None:
    data = encode_picture(Image.new("RGB", (8, 4)), "png")
    assert decode_stored(data, (4, 8), ("RGB",)).shape == (4, 8, 3)
    with pytest.raises(ValueError, match="not"):
        decode_stored(data, (8, 4), ("RGB",))
    with pytest.raises(ValueError, match="not"):
        decode_stored(data, (4, 8), ("L", "P"))


def test_a_mask_is_a_grey_png_whose_lines_are_not_filtered() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    data = encode_mask(mask)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # every chunk's checksum
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "L") and np.array_equal(image, mask)
    begin = data.index(b"IDAT") + 4
    lines = np.frombuffer(zlib.decompress(data[begin : data.index(b"IEND") - 8]), np.uint8)
    assert not lines.reshape(5, 8)[:, 0].any()
