"""Bytes to pixels and back: foreign pictures and masks, and the encodings of our shards."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from stillroom.errors import UserError
from stillroom.jsonfile import read_bytes

MAX_PIXELS = 100_000_000
MAX_SIDE_PX = 10_000  # of a geometry
MAX_FILE_BYTES = 1 << 27  # of a picture's file
PADDING_GREY = 128
# Pillow only warns between one and two times its limit; for us the limit is a limit.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")  # Pillow knows more; some of them start programs
_ORIENTATION = 0x0112
_OPAQUE = frozenset(("RGB", "L", "P", "1", "CMYK", "YCbCr"))
_TRANSPARENT = frozenset(("LA", "La", "PA", "RGBA", "RGBa"))


class BadPicture(UserError):
    """A picture or mask that cannot go into a shard; `--skip-bad` leaves it out."""


def open_picture(path: Path) -> tuple[bytes, Image.Image]:
    """Return a file's bytes and its decoded image; raises BadPicture that names the file."""
    try:
        data = read_bytes(path, MAX_FILE_BYTES, links=True)
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()
    except FileNotFoundError:
        raise BadPicture(f"{path} is missing") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadPicture(
            f"{path} has more than {MAX_PIXELS // 10**6} megapixels", found=str(error)
        ) from None
    except UnidentifiedImageError:
        raise BadPicture(
            f"{path} is not a readable picture",
            found=f"{len(data)} bytes of something else, or damaged ones",
            wanted=f"a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file",
        ) from None
    except Exception as error:  # what decoders raise on bad bytes cannot be listed
        raise BadPicture(f"{path} is not a readable picture", found=_reason(error)) from None
    return data, image


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Return an upright 8-bit RGB copy without metadata.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled by 1/257.
    Raises BadPicture where a pixel's meaning is unknown (32-bit integers, floats).
    """
    try:
        image = _opaque(ImageOps.exif_transpose(image), path)
    except BadPicture:
        raise
    except Exception as error:  # EXIF blocks are as foreign as pixels
        raise BadPicture(f"{path} is not a readable picture", found=_reason(error)) from None
    image.info = {}
    return image


def can_keep_bytes(data: bytes, image: Image.Image, picture_format: str) -> bool:
    """Say whether a file is what a shard holds: upright 8-bit RGB in the wanted format."""
    if image.mode != "RGB" or image.getexif().get(_ORIENTATION, 1) != 1:
        return False
    if picture_format == "jpg":
        return image.format == "JPEG"
    still = image.format == "PNG" and not getattr(image, "is_animated", False)
    eight_bit_rgb = data[24:26] == b"\x08\x02"  # Pillow says RGB for 16 bits too
    return still and eight_bit_rgb and "transparency" not in image.info


def decode_labels(image: Image.Image, path: Path) -> Int[np.ndarray, "h w"]:
    """Return palette indices or grey levels as int32; raises BadPicture where there are none."""
    _refuse_jpeg(image, path)
    if image.mode in ("P", "L", "1", "I") or image.mode.startswith("I;16"):
        return np.array(image).astype(np.int32)
    if image.mode in ("LA", "PA"):
        return np.array(image)[:, :, 0].astype(np.int32)
    if image.mode in ("RGB", "RGBA"):
        colours = np.array(image)[:, :, :3]
        if (colours == colours[:, :, :1]).all():
            return colours[:, :, 0].astype(np.int32)
    raise BadPicture(
        f"{path} is no mask of class numbers",
        found=f"a colour picture (mode {image.mode})",
        wanted="one channel: palette or grey, the value being the class",
        fix="--mask-colours R,G,B:CLASS ... (stillroom check-data SOURCE finds the colours)",
    )


def decode_colours(image: Image.Image, path: Path) -> Int[np.ndarray, "h w"]:
    """Return each pixel's colour as red * 65536 + green * 256 + blue; raises BadPicture for a
    JPEG, and where a pixel has more than eight bits a channel.
    """
    _refuse_jpeg(image, path)
    if image.mode not in ("P", "PA", "L", "LA", "1", "RGB", "RGBA"):
        raise BadPicture(f"{path} is no mask of colours", found=f"mode {image.mode}", wanted="RGB")
    colours = np.array(image.convert("RGB")).astype(np.int32)
    return colours @ np.array([65536, 256, 1], np.int32)


def _refuse_jpeg(image: Image.Image, path: Path) -> None:
    if image.format == "JPEG":
        raise BadPicture(f"{path} is a JPEG mask: its values are not what was drawn", wanted="PNG")


def encode_picture(image: Image.Image, picture_format: str) -> bytes:
    """Return an RGB image as JPEG (quality 95, 4:4:4) or PNG; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    if picture_format == "jpg":
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def encode_mask(mask: UInt8[np.ndarray, "h w"]) -> bytes:
    """Return a mask as a grey PNG.

    Every reader takes a grey level for a number; not all of them do so with a palette index. No
    line is filtered, and zlib's level is 3: decoded in .07 ms at 256 px and .30 at 640, where what
    Pillow writes takes .11 and .88.
    """
    height, width = mask.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each begins with the number of its filter
    lines[:, 1:] = mask
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits of grey
    pieces = {b"IHDR": header, b"IDAT": zlib.compress(lines.tobytes(), 3), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in pieces.items()
    )


def decode_stored(
    data: bytes, size: tuple[int, int], modes: tuple[str, ...]
) -> UInt8[np.ndarray, "..."]:
    """Return the pixels of a shard's member; `size` is the (height, width) its index promises.

    Raises ValueError where it holds something else. The size is compared before anything is
    allocated, and decoding releases the GIL.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        found = (image.height, image.width)
        if found != size or image.mode not in modes:
            raise ValueError(f"{found} {image.mode}, not {size} {'/'.join(modes)}")
        return np.array(image)


def _opaque(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.array(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode in _OPAQUE:
        return image.convert("RGB")
    raise BadPicture(
        f"{path} has pixels of unknown meaning",
        found=f"mode {image.mode}",
        wanted="8-bit grey, palette, RGB, RGBA or CMYK, or 16-bit grey",
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
