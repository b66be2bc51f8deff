"""The one way a JSON file is written and read: canonical, self-checked, whole or not there.

A file is one JSON object: UTF-8, keys sorted, no spaces, no NaN, its last member `"sha256"`. That
is the sha256 of the object's bytes without this last member, that is of everything before
`,"sha256":` followed by `}`.

The shape of each file is declared as a struct of msgspec, which only decodes: what is hashed and
written is Python's own `json`.
"""

import errno
import hashlib
import io
import json
import os
import stat
import threading
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import msgspec

from stillroom.errors import DamageError, UserError

MAX_BYTES = 20_000_000  # of a file
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # FAT, FUSE, some network file systems
_TAIL_BYTES = len(',"sha256":""}\n') + 64
_KINDS = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO"}

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Crc32c = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class Declared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of ours, or a part of it, holds: these members and no other."""


def canonical(body: dict[str, Any] | Declared) -> bytes:
    """Return the bytes that are hashed, structs as objects; raises ValueError on NaN."""
    assert not isinstance(body, dict) or ("sha256" not in body and body), "the last member is ours"
    text = json.dumps(
        body,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
        default=msgspec.to_builtins,
    )
    return text.encode()


def digest(body: dict[str, Any] | Declared) -> str:
    """Return the sha256 (hex) that `write_json` would put at the end."""
    return hashlib.sha256(canonical(body)).hexdigest()


def encode_json(body: dict[str, Any] | Declared) -> bytes:
    """Return the content of a file that holds `body`; UserError where nobody could read it."""
    head = canonical(body)
    if len(head) > MAX_BYTES:
        raise UserError(
            "a JSON file would become too large to be read again",
            found=f"{len(head)} bytes",
            wanted=f"at most {MAX_BYTES}",
            fix="pack the pictures with another --shard-rows: fewer or smaller shards",
        )
    return head[:-1] + f',"sha256":"{hashlib.sha256(head).hexdigest()}"}}\n'.encode()


def write_json(path: Path, body: dict[str, Any] | Declared, *, replace: bool = True) -> bool:
    """Write `body` atomically and durably; without `replace`, an existing file stays and False is
    returned.
    """
    return write_bytes(path, encode_json(body), replace=replace)


def read_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """Return the body of a file of ours, without its `sha256`, decoded as `kind`.

    Raises FileNotFoundError, and DamageError where the bytes are not those that were written, or
    not of this kind.
    """
    return read_json_and_digest(path, kind)[0]


def read_json_and_digest(path: Path, kind: Any = dict[str, Any]) -> tuple[Any, str]:
    """Return what `read_json` does, and the sha256 that the file ends with."""
    data = read_bytes(path, MAX_BYTES)
    return decode_json(data, path, kind), data[-67:-3].decode()


def decode_json(data: bytes, path: Path | str, kind: Any = dict[str, Any]) -> Any:
    """Check and decode the content of a file of ours; `path` is for the message only."""
    head, tail = data[:-_TAIL_BYTES] + b"}", data[-_TAIL_BYTES:]
    wanted = f',"sha256":"{hashlib.sha256(head).hexdigest()}"}}\n'.encode()
    if tail != wanted:
        raise DamageError(
            f"{path} is damaged: its checksum does not fit its content",
            found=tail.decode(errors="replace").strip(),
            wanted=wanted.decode().strip(),
        )
    try:
        with _LEARNING:
            decoder = _decoder(kind)
        return decoder.decode(head)
    except (ValueError, RecursionError) as error:  # msgspec names the member
        name = "file of ours" if kind == dict[str, Any] else kind.__name__
        raise DamageError(f"{path} is not what a {name} is", found=error) from None


# msgspec looks a type over when it first meets it, and crashes where two threads do at once.
_LEARNING = threading.Lock()
_decoder = cache(msgspec.json.Decoder)


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
            rename(aside, path)
        elif not _name_first(aside, path):
            return False
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def file_sha256(path: Path, *, links: bool = False) -> str:
    """Return the sha256 (hex) of a file, read in pieces; errors as `open_regular`."""
    with open_regular(path, links=links) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name_first(aside: Path, path: Path) -> bool:
    """Give a whole file its name unless there is one of that name; False where there is."""
    try:
        path.hardlink_to(aside)
    except FileExistsError:
        return path.samefile(aside)  # a request over NFS that was done and answered twice
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Two may pass this line in the same moment: the later one's file stays, both read that one.
        if path.exists():
            return False
        data = aside.read_bytes()
        rename(aside, path)
        return path.read_bytes() == data
    return True


def rename(source: Path, target: Path) -> None:
    """Rename a file or a folder. A network file system may do it, lose its answer, be asked again
    and say then that the source is gone: where the target is there, it was done.
    """
    try:
        os.rename(source, target)  # noqa: PTH104  (Path.rename is documented as replacing)
    except FileNotFoundError:
        if os.path.lexists(source) or not target.exists():
            raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one a line, up to a line that was cut off; none where the
    file is not there.
    """
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
