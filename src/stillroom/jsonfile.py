"""The one way a JSON file is written and read: canonical, self-checked, whole or not there.

A file is one JSON object: UTF-8, keys sorted, no spaces, no NaN, its last member `"sha256"`. That
is the sha256 of the object's bytes without this last member, that is of everything before
`,"sha256":` followed by `}`.

A checksum does not tell an enemy from a friend, so what parsing may cost is bounded beforehand: at
most 190 MB and about a second, for a million values.
"""

import hashlib
import io
import itertools
import json
import os
import stat
from pathlib import Path
from typing import Any

from stillroom.errors import DamageError, UserError

MAX_BYTES = 20_000_000  # of a file; a third where a letter is not ASCII (each then takes 4 bytes)
_MAX_TOKENS = 1_000_000  # commas, colons (twice) and brackets: up to 103 bytes each, once parsed
_MAX_DEPTH = 64
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_TAIL_BYTES = len(',"sha256":""}\n') + 64
_KINDS = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO"}


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
    """Return the content of a file that holds `body`; UserError where nobody could read it."""
    head = canonical(body)
    if excess := _excess(head):
        raise UserError(
            "a JSON file would become too large to be read again",
            found=excess,
            fix="pack the pictures with another --shard-rows: fewer or smaller shards",
        )
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
    return decode_json(read_bytes(path, MAX_BYTES), path)


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
    if excess := _excess(head):
        raise DamageError(f"{path} is too large", found=excess)
    try:
        body = json.loads(head)
        is_ours = isinstance(body, dict) and "sha256" not in body and bool(body)
        is_canonical = is_ours and canonical(body) == head
    except ValueError as error:
        raise DamageError(f"{path} is not JSON: {error}") from None
    if not is_canonical:
        raise DamageError(f"{path} is no JSON object written as ours are: sorted, without spaces")
    return body


def _excess(head: bytes) -> str | None:
    """Say in what a text is too large to be parsed, or None."""
    most = MAX_BYTES if head.isascii() else MAX_BYTES // 3
    if len(head) > most:
        return f"{len(head)} bytes, more than {most}"
    tokens = sum(map(head.count, (b",", b":", b":", b"[", b"{")))  # a member costs twice a value
    if tokens > _MAX_TOKENS:
        return f"{tokens} values, more than {_MAX_TOKENS}"
    brackets = head.translate(None, _NOT_BRACKETS)
    depth = max(itertools.accumulate(1 if b in b"[{" else -1 for b in brackets), default=0)
    return f"nested {depth} deep, more than {_MAX_DEPTH}" if depth > _MAX_DEPTH else None


def open_regular(path: Path, *, links: bool = False) -> io.BufferedReader:
    """Open a file to read, once it is known to be one: a FIFO would block, a device never end.

    A link leads elsewhere and is refused but with `links`, for files that the user named himself.
    Raises FileNotFoundError, and DamageError where this is no regular file.
    """
    mode = (path.stat() if links else path.lstat()).st_mode
    if not stat.S_ISREG(mode):
        found = _KINDS.get(stat.S_IFMT(mode), "a device or a socket")
        raise DamageError(f"{path} is no regular file", found=found, wanted="a regular file")
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")


def read_bytes(path: Path, max_bytes: int, *, links: bool = False) -> bytes:
    """Return a whole file; DamageError, before anything is read, where it is too large."""
    with open_regular(path, links=links) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise DamageError(f"{path} is too large", found=f"{size} bytes", wanted=f"{max_bytes}")
        return file.read(size)


def write_bytes(path: Path, data: bytes, *, replace: bool = True) -> bool:
    """Write a whole file atomically: aside, fsync, rename (or link without replacing), fsync of the
    folder.
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


def file_sha256(path: Path, *, links: bool = False) -> str:
    """Return the sha256 (hex) of a file, read in pieces; errors as `open_regular`."""
    with open_regular(path, links=links) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
