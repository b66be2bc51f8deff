"""zstd frames made and spoilt by hand (RFC 8878, section 3.1), and joined as a zarr shard."""

import struct

import google_crc32c
from numcodecs import zstd

_MAGIC = b"\x28\xb5\x2f\xfd"


def compress(data: bytes) -> bytes:
    """Return a frame that states its content size."""
    return zstd.compress(data, 1)


def restate(frame: bytes, size: int) -> bytes:
    """Return the frame with another content size, of eight bytes, and a window of 128 KiB."""
    _, blocks = _split(frame)
    return _MAGIC + b"\xc0" + b"\x38" + struct.pack("<Q", size) + blocks


def without_size(data: bytes) -> bytes:
    """Return a frame that states no content size, of one raw block."""
    block = struct.pack("<I", len(data) << 3 | 1)[:3] + data
    return _MAGIC + b"\x00" + b"\x38" + block


def with_dictionary(frame: bytes) -> bytes:
    """Return the frame with the number of a dictionary that nobody has."""
    head, blocks = _split(frame)
    return _MAGIC + b"\xc3" + b"\x38" + b"\x07\0\0\0" + struct.pack("<Q", _size(head)) + blocks


def with_window(frame: bytes) -> bytes:
    """Return the frame with the largest window that can be stated."""
    head, blocks = _split(frame)
    return _MAGIC + b"\xc0" + b"\xff" + struct.pack("<Q", _size(head)) + blocks


def join(chunks: list[bytes]) -> tuple[bytes, dict[str, list[int]]]:
    """Return a zarr shard of these frames and its columns in shard.json."""
    body, columns = b"", {"offset": [], "size": [], "crc32c": []}
    for chunk in chunks:
        crc = google_crc32c.value(chunk)
        for name, value in (("offset", len(body)), ("size", len(chunk)), ("crc32c", crc)):
            columns[name].append(value)
        body += chunk + struct.pack("<I", crc)
    pairs = zip(columns["offset"], columns["size"], strict=True)
    index = b"".join(struct.pack("<2Q", offset, size + 4) for offset, size in pairs)
    return body + index + struct.pack("<I", google_crc32c.value(index)), columns


def _split(frame: bytes) -> tuple[bytes, bytes]:
    """Return the header and the blocks of a frame that states its size."""
    descriptor = frame[4]
    single = descriptor >> 5 & 1
    width = (single, 2, 4, 8)[descriptor >> 6]
    end = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3] + width
    return frame[:end], frame[end:]


def _size(head: bytes) -> int:
    descriptor = head[4]
    width = (descriptor >> 5 & 1, 2, 4, 8)[descriptor >> 6]
    return int.from_bytes(head[-width:], "little") + (256 if width == 2 else 0)
