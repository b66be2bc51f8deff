"""JSON files of ours appear whole, read back equal, and no change goes unnoticed."""

import json
import random

import pytest

from stillroom.errors import DamageError
from stillroom.jsonfile import read_json, write_json

BODY = {"b": 1, "a": [1.5, None, "ä"], "nested": {"z": True, "y": []}}


def test_a_file_reads_back_equal_and_is_plain_json(tmp_path):
    path = tmp_path / "x.json"
    assert write_json(path, BODY)
    assert read_json(path) == BODY
    assert {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"} == BODY


def test_every_single_bit_flip_and_truncation_is_noticed(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, BODY)
    data = path.read_bytes()
    damaged = [
        bytes([*data[: i // 8], data[i // 8] ^ (1 << i % 8), *data[i // 8 + 1 :]])
        for i in range(8 * len(data))
    ]
    damaged += [data[:size] for size in range(len(data))] + [data + b" "]
    random.Random(0).shuffle(damaged)
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DamageError, match=r"x\.json"):
            read_json(path)


def test_without_replacing_the_first_writer_wins(tmp_path):
    path = tmp_path / "x.json"
    assert write_json(path, {"a": 1}, replace=False)
    assert not write_json(path, {"a": 2}, replace=False)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())
