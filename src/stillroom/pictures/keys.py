"""Picture keys: how a source's name becomes the word that joins everything."""

import hashlib

import msgspec

from stillroom.errors import UserError
from stillroom.hashing import keyed_hash
from stillroom.types import Key

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-/")


def key_of(name: str) -> str:
    """Return the key of a picture that its source calls `name` (no suffix, `/` between folders).

    Every byte outside `A-Z a-z 0-9 _ - /` becomes `=` and two hex digits: WebDataset cuts names at
    the first dot. Raises UserError where no key can be made of the name.
    """
    try:
        data = name.encode()
    except UnicodeEncodeError:
        raise UserError(f"the name {name!a} is not UTF-8", fix="rename the file") from None
    key = "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in data)
    try:
        return msgspec.convert(key, Key)
    except msgspec.ValidationError:
        raise UserError(
            f"{name!r} makes no key",
            found=f"{key} ({len(key)} bytes)",
            wanted="1 to 200 bytes, no empty name of a folder, no first folder __like_this__",
            fix="rename the file",
        ) from None


def share_of(key: str, purpose: str) -> float:
    """Return where in [0, 1) a key falls for one purpose, independent of other keys and purposes.

    `share_of(key, "val") < 0.1` picks a tenth of the pictures; new pictures move none of the old
    ones, and a larger share only adds.
    """
    digest = hashlib.sha256(f"{purpose}\0{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def is_label_used(key: str, label_share: float) -> bool:
    """Return whether a recipe's label share takes the label of a picture: a larger share only adds
    to a smaller.
    """
    return keyed_hash("label", key) < label_share * 2**64
