"""Picture keys: how a source's name becomes the word that joins everything."""

import hashlib
import re

from stillroom.errors import UserError

MAX_KEY_BYTES = 200
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-/")
_LEGAL = re.compile(r"[A-Za-z0-9_=/-]+")
_META = re.compile(r"__[^/]*__/")  # WebDataset skips such members without a word


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
    if problem := key_problem(key):
        raise UserError(f"{name!r} makes no key: {problem}", found=key, fix="rename the file")
    return key


def key_problem(key: str) -> str | None:
    """Return why a text is no key, or None if it is one."""
    if not _LEGAL.fullmatch(key):
        return "only A-Z a-z 0-9 _ = - and / may occur in it"
    if len(key) > MAX_KEY_BYTES:
        return f"it has {len(key)} bytes, more than {MAX_KEY_BYTES}"
    if key.startswith("/") or key.endswith("/") or "//" in key:
        return "a folder's name in it is empty"
    if _META.match(key):
        return "WebDataset readers skip folders named __like_this__"
    return None


def share_of(key: str, purpose: str) -> float:
    """Return where in [0, 1) a key falls for one purpose, independent of other keys and purposes.

    `share_of(key, "val") < 0.1` picks a tenth of the pictures; new pictures move none of the old
    ones, and a larger share only adds.
    """
    digest = hashlib.sha256(f"{purpose}\0{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
