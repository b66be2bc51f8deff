"""A reader of caches made from docs/format.md alone: nothing of stillroom, no Zarr, no tar.

python tests/cache/independent_reader.py CACHE     prints every row
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


def read_frame(path: Path, offset: int, size: int, crc: int, out: np.ndarray) -> None:
    """Unpack one frame into an array of a row's size, which no frame may pass."""
    with path.open("rb") as file:
        file.seek(offset)
        frame = file.read(size)
    if len(frame) != size or crc32c(frame) != crc:
        raise ValueError(f"{path} is damaged at {offset}")
    Zstd().decode(frame, out)


def read_cache(cache: Path) -> Iterator[tuple[str, int | None, list[int], dict[str, np.ndarray]]]:
    """Yield key, region, view and `<target>.<part>` -> array of every row of every shard."""
    identity, fingerprint = read_json(cache / "identity.json")
    assert identity["format"] == "stillroom cache 1", identity["format"]
    suffix, in_tar = {"zarr": (".zarr", None), "tar": (".wds", "rows.tar")}[identity["body"]]
    codecs = hashlib.sha256((cache / "codecs.safetensors").read_bytes()).hexdigest()
    for shard in identity["pictures"]["shards"]:
        folder = cache / f"{shard['split']}-{shard['number']:06d}{suffix}"
        shard_index, _ = read_json(folder / "shard.json")
        said = [shard_index[name] for name in ("fingerprint", "codecs_sha256", "split", "number")]
        assert said == [fingerprint, codecs, shard["split"], shard["number"]], folder
        rows = shard_index["rows"]
        for i, key in enumerate(rows["key"]):
            parts = {}
            for target, spec in sorted(identity["targets"].items()):
                for part, dtype in PARTS[spec["codec"]].items():
                    name = f"{target}.{part}"
                    place = [shard_index["parts"][name][c][i] for c in ("offset", "size", "crc32c")]
                    parts[name] = np.empty(spec["shape"], dtype)
                    file = folder / (in_tar or f"{name}/c/0/0/0/0")
                    read_frame(file, *place, parts[name])
            yield key, rows["region"][i], rows["view"][i], parts


if __name__ == "__main__":
    for key, region, view, parts in read_cache(Path(sys.argv[1])):
        print(
            key, region, view, {name: (*value.shape, value.dtype) for name, value in parts.items()}
        )
