"""Numbers that are a function of names: the one source of everything that is drawn."""

import hashlib


def keyed_hash(*parts: object) -> int:
    """Return 64 bits that depend on every part and on nothing else (BLAKE2b)."""
    text = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
