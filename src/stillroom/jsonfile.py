"""The one way a JSON file is written and read: canonical, self-checked, whole or not there.

A file is one JSON object: UTF-8, keys sorted, no spaces, no NaN, its last member `"sha256"`. That
is the sha256 of the
object's bytes without this last member, that is of everything before `,"sha256":` followed by `}`.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from stillroom.errors import DamageError

MAX_BYTES = 1 << 28
_TAIL_BYTES = len(',"sha256":""}\n') + 64


def canonical(body: dict[str, Any]) -> bytes:
    """Return the bytes that are hashed; raises ValueError on NaN."""
    assert "sha256" not in body and body, "the last member is ours"
    text = json.dumps(
        body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def digest(body: dict[str, Any]) -> str:
    """Return the sha256 (hex) that `write_json` would put at the end."""
    return hashlib.sha256(canonical(body)).hexdigest()


def encode_json(body: dict[str, Any]) -> bytes:
    """Return the whole content of a file that holds `body`."""
    head = canonical(body)
    return head[:-1] + f',"sha256":"{hashlib.sha256(head).hexdigest()}"}}\n'.encode()


def write_json(path: Path, body: dict[str, Any], *, replace: bool = True) -> bool:
    """Write `body` atomically and durably; without `replace`, an existing file stays and False is
    returned.
    """
    return write_bytes(path, encode_json(body), replace=replace)


def read_json(path: Path) -> dict[str, Any]:
    """Return the body of a file of ours, without its `sha256`.

    Raises FileNotFoundError, and DamageError where the bytes are not those that were written.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DamageError(f"{path} is too large", found=f"{size} bytes", wanted=f"<= {MAX_BYTES}")
    return decode_json(path.read_bytes(), path)


def decode_json(data: bytes, path: Path) -> dict[str, Any]:
    """Check and parse the content of a file of ours; `path` is for the message only."""
    head, tail = data[:-_TAIL_BYTES] + b"}", data[-_TAIL_BYTES:]
    wanted = f',"sha256":"{hashlib.sha256(head).hexdigest()}"}}\n'.encode()
    if tail != wanted:
        raise DamageError(
            f"{path} is damaged: its checksum does not fit its content",
            found=tail.decode(errors="replace").strip(),
            wanted=wanted.decode().strip(),
        )
    try:
        body = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path} is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise DamageError(f"{path} holds no JSON object")
    return body


def write_bytes(path: Path, data: bytes, *, replace: bool = True) -> bool:
    """Write a whole file atomically: aside, fsync, rename (or link without replacing), fsync of
    the folder.
    """
    aside = path.parent / f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            aside.replace(path)
        else:
            try:
                path.hardlink_to(aside)
            except FileExistsError:
                return False
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
