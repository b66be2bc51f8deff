"""A reader of caches made from docs/format.md alone: nothing of stillroom, no Zarr, no tar.

python tests/cache/independent_reader.py CACHE     prints every row
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import Zstd

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


def parts_of(codec: str, shape: list[int]) -> dict[str, tuple[str, list[int]]]:
    """Section 4: of each codec the parts, their types and shapes."""
    name, _, argument = codec.partition(":")
    c, y, x = shape
    if name == "float16":
        return {"value": ("<f2", shape)}
    if name == "int8":
        return {"value": ("|i1", shape), "step": ("<f4", [c, 1, 1])}
    if name == "logits8":
        peak = {"peak": ("<f2", [1, y, x])} if c > 1 else {}
        return {"difference": ("|u1", shape), **peak}
    assert name == "stochastic", codec
    return {"impulse": ("|u1", [math.ceil(2 * c / (1 + float(argument))), y, x])}


def decode(codec: str, parts: dict[str, np.ndarray], fitted: dict[str, np.ndarray]) -> np.ndarray:
    """Section 4: the target's values, of one row."""
    if codec == "float16":
        return parts["value"].astype(np.float32)
    if codec == "int8":
        return parts["value"] * parts["step"]
    if codec == "logits8":
        level = parts["difference"].cumsum(1, np.uint8).cumsum(2, np.uint8)
        if "peak" in parts:
            return parts["peak"] - grid_of_several()[level]
        signed = level.view(np.int8).astype(int)
        return np.sign(signed) * grid_of_one()[abs(signed)]
    offset, packed = fitted["offset"], parts["impulse"]
    values = np.zeros(len(offset) * packed.shape[1] * packed.shape[2], np.float32)
    place = 0
    for byte in packed.tobytes():
        if byte == 255:
            place += 127
        elif byte > 0:
            place += (byte - 1) >> 1
            values[place] += -1 if (byte - 1) & 1 else 1
    return offset + fitted["step"] * values.reshape(len(offset), *packed.shape[1:])


def grid_of_several() -> np.ndarray:
    e = math.e
    value = np.arange(256) * 2 * (1 + math.log(8) / e) / 511
    near, middle, far = value < 1 - 1 / e, value < 1 - 1 / e + math.log(8) / e, value
    with np.errstate(invalid="ignore"):
        first, second = -np.log(1 - value), np.exp(e * (value - 1 + 1 / e))
        third = -8 * np.log(1 + math.log(8) / e - far)
    return np.where(near, first, np.where(middle, second, third)).astype(np.float32)


def grid_of_one() -> np.ndarray:
    t = 1.5434046384182085
    s = 1 / (1 + math.exp(-t))
    c = t * s * (1 - s)
    value = np.arange(128) * 2 * (0.5 + c * math.log(8)) / 255
    near, middle = value < s - 0.5, value < s - 0.5 + c * math.log(8)
    with np.errstate(invalid="ignore", divide="ignore"):
        first = np.log((0.5 + value) / (0.5 - value))
        second = t * np.exp((value - s + 0.5) / c)
        p = value + 0.5 - c * math.log(8)
        third = 8 * np.log(p / (1 - p))
    return np.where(near, first, np.where(middle, second, third)).astype(np.float32)


def read_fitted(cache: Path) -> dict[str, dict[str, np.ndarray]]:
    """`codecs.safetensors`: the length of a JSON header, the header, the values."""
    data = (cache / "codecs.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    fitted: dict[str, dict[str, np.ndarray]] = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32", entry
            first, last = (start + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[first:last], "<f4").reshape(entry["shape"])
            target, _, member = name.partition("/")
            fitted.setdefault(target, {})[member] = values
    return fitted


def decoded(cache: Path, parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the teachers said, of the parts of one row."""
    (identity, _), fitted = read_json(cache / "identity.json"), read_fitted(cache)
    of_target: dict[str, dict[str, np.ndarray]] = {}
    for name, value in parts.items():
        target, _, part = name.partition(".")
        of_target.setdefault(target, {})[part] = value
    codecs = {target: spec["codec"] for target, spec in identity["targets"].items()}
    return {
        target: decode(codecs[target], its_parts, fitted.get(target, {})).astype(np.float32)
        for target, its_parts in of_target.items()
    }


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
                for part, (dtype, shape) in parts_of(spec["codec"], spec["shape"]).items():
                    name = f"{target}.{part}"
                    place = [shard_index["parts"][name][c][i] for c in ("offset", "size", "crc32c")]
                    parts[name] = np.empty(shape, dtype)
                    file = folder / (in_tar or f"{name}/c/0/0/0/0")
                    read_frame(file, *place, parts[name])
            yield key, rows["region"][i], rows["view"][i], parts


if __name__ == "__main__":
    for key, region, view, parts in read_cache(Path(sys.argv[1])):
        print(
            key, region, view, {name: (*value.shape, value.dtype) for name, value in parts.items()}
        )
