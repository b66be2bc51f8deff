"""A reader of caches made from docs/format.md alone: nothing of stillroom, no Zarr, no tar.

python tests/cache/independent_reader.py CACHE     prints key, view and parts of every row
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import Zstd

PARTS = {"float16": {"value": "<f2"}}  # section 4: of each codec the parts and their types
_TABLE = [0] * 256
for _i in range(256):
    _value = _i
    for _ in range(8):
        _value = _value >> 1 ^ (0x82F63B78 if _value & 1 else 0)
    _TABLE[_i] = _value


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a self-checked file, and its sha256 member."""
    data = path.read_bytes()
    sha256 = hashlib.sha256(data[:-78] + b"}").hexdigest()
    if data[-78:] != f',"sha256":"{sha256}"}}\n'.encode():
        raise ValueError(f"{path} is damaged")
    return json.loads(data), sha256


def read_frame(path: Path, offset: int, size: int, crc: int, num_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        frame = file.read(size)
    if len(frame) != size or crc32c(frame) != crc:
        raise ValueError(f"{path} is damaged at {offset}")
    value = Zstd().decode(frame, np.empty(num_bytes, np.uint8))  # no more than a row, ever
    return value.tobytes()


def read_cache(cache: Path) -> Iterator[tuple[str, int | None, list[int], dict[str, np.ndarray]]]:
    """Yield key, region, view and `<target>.<part>` -> array of every row of every shard."""
    identity, fingerprint = read_json(cache / "identity.json")
    assert identity["format"] == "stillroom cache 1", identity["format"]
    is_tar = identity["body"] == "tar"
    codecs_sha256 = hashlib.sha256((cache / "codecs.safetensors").read_bytes()).hexdigest()
    for shard in identity["pictures"]["shards"]:
        name = f"{shard['split']}-{shard['number']:06d}"
        folder = cache / (name + (".wds" if is_tar else ".zarr"))
        record, _ = read_json(folder / "shard.json")
        assert (record["fingerprint"], record["codecs_sha256"]) == (fingerprint, codecs_sha256)
        assert (record["split"], record["number"]) == (shard["split"], shard["number"])
        rows, values = record["rows"], {}
        for target, spec in sorted(identity["targets"].items()):
            for part, dtype in PARTS[spec["codec"]].items():
                inside = "rows.tar" if is_tar else f"{target}.{part}/c/0/0/0/0"
                columns = record["parts"][f"{target}.{part}"]
                spans = zip(columns["offset"], columns["size"], columns["crc32c"], strict=True)
                num_bytes = int(np.prod(spec["shape"])) * np.dtype(dtype).itemsize
                values[f"{target}.{part}"] = [
                    np.frombuffer(read_frame(folder / inside, *s, num_bytes), dtype).reshape(
                        spec["shape"]
                    )
                    for s in spans
                ]
        for i, (key, region, view) in enumerate(
            zip(rows["key"], rows["region"], rows["view"], strict=True)
        ):
            yield key, region, view, {name: arrays[i] for name, arrays in values.items()}


if __name__ == "__main__":
    for key, region, view, parts in read_cache(Path(sys.argv[1])):
        print(
            key, region, view, {name: (*value.shape, value.dtype) for name, value in parts.items()}
        )
