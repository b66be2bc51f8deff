"""JSON files of ours appear whole, read back equal, and no change goes unnoticed."""

import json
import random
import subprocess
import sys

import pytest

from stillroom.errors import DamageError
from stillroom.jsonfile import Count, Declared, digest, read_json, read_json_and_digest, write_json

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


class Pair(Declared, frozen=True):
    b: Count
    a: tuple[float, float]


def test_a_declared_shape_is_written_as_the_object_that_it_is(tmp_path):
    path, pair = tmp_path / "x.json", Pair(b=1, a=(0.5, 2.0))
    write_json(path, pair)
    data = path.read_bytes()
    write_json(path, {"a": [0.5, 2.0], "b": 1})
    assert path.read_bytes() == data and data.startswith(b'{"a":[0.5,2.0],"b":1,"sha256":"')
    assert read_json_and_digest(path, Pair) == (
        Pair(b=1, a=(0.5, 2.0)),
        digest(Pair(1, (0.5, 2.0))),
    )


@pytest.mark.parametrize(
    ("change", "member"),
    [({"b": -1}, "b"), ({"b": True}, "b"), ({"b": 1.0}, "b"), ({"a": [1]}, "a"), ({"c": 1}, "c")],
)
def test_a_file_of_another_shape_is_refused_with_the_member_at_fault(tmp_path, change, member):
    path = tmp_path / "x.json"
    write_json(path, {"a": [0.5, 2.0], "b": 1} | change)
    with pytest.raises(DamageError, match=rf"x\.json is not what a Pair is\n.*{member}"):
        read_json(path, Pair)


READERS = """
import sys, threading
from pathlib import Path
from stillroom.jsonfile import Count, Declared, decode_json, encode_json

def first_reads():
    class Part(Declared):
        offset: tuple[Count, ...]
        size: tuple[Count, ...]

    class Kind(Declared):
        parts: dict[str, Part]
        more: Part

    part = {"offset": [1], "size": [2]}
    data = encode_json({"parts": {"a": part}, "more": part})
    together = threading.Barrier(6)

    def read():
        together.wait()
        decode_json(data, Path("x.json"), Kind)

    readers = [threading.Thread(target=read) for _ in range(6)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()

threading.excepthook = sys.excepthook
sys.setswitchinterval(1e-6)
for _ in range(300):
    first_reads()
"""


def test_threads_may_read_the_first_files_of_a_kind_at_once():
    """msgspec alone crashes here: the process of its own is for that."""
    done = subprocess.run([sys.executable, "-c", READERS], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
