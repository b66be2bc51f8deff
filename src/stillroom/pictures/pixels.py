"""The digest of the pixels that a teacher was shown, and the refusal of any others.

The file of a picture may be sound and its pixels others all the same: another version of Pillow or
of its JPEG library decodes or resamples differently. A digest of 256 x 256 pixels takes 6 us.
"""

from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
import PIL
from PIL import features

from stillroom.errors import UserError
from stillroom.pictures.dataset import Picture
from stillroom.types import Row


def pixels_crc32c(picture: Picture) -> int:
    """Return the crc32c of a picture's RGB bytes (h w 3) in C order, and, where it is shown for a
    box, of the box's four float32, little-endian, after them.
    """
    found = google_crc32c.value(picture.image)  # pyright: ignore[reportArgumentType]  (any buffer)
    if picture.box is None:
        return found
    return google_crc32c.extend(found, np.array(picture.box, "<f4").tobytes())


def decoder_versions() -> dict[str, str]:
    """Return the versions of what turns a picture's file into the pixels of a view."""
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return {"pillow": PIL.__version__, "libjpeg": str(jpeg)}


def require_pixels(picture: Picture, row: Row, wanted: int, provenance: Mapping[str, Any]) -> None:
    """Raise UserError, with the versions on both sides, where a row's picture has another digest
    than the one that its teachers saw; `provenance` is that of the row's shard.
    """
    found = pixels_crc32c(picture)
    if found == wanted:
        return
    versions = provenance.get("versions")
    made_by = versions if isinstance(versions, Mapping) else {}
    here = decoder_versions()
    raise UserError(
        f"the pixels of {row.key} (region {row.region}, view {row.view.number})"
        f"{' or its box' if row.region is not None else ''} are not those that the teachers saw,"
        " though the picture's file is the same",
        found=f"crc32c {found:08x}, by {_text(here)}",
        wanted=f"crc32c {wanted:08x}, by {_text({name: made_by.get(name) for name in here})}",
        fix="install the versions that made the cache, or make the cache again with these",
    )


def _text(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(value or 'unknown')[:40]}" for name, value in versions.items())
