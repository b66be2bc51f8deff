"""Keys: legal, and a stable share of [0, 1)."""

import msgspec
import pytest

from stillroom.errors import UserError
from stillroom.pictures.keys import key_of, share_of
from stillroom.types import Key


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a/b_c-1", "a/b_c-1"),
        ("a.b", "a=2Eb"),
        ("a=2Eb", "a=3D2Eb"),
        ("Ä b", "=C3=84=20b"),
    ],
)
def test_names_are_escaped_byte_by_byte(name: str, key: str) -> None:
    assert key_of(name) == key
    assert msgspec.convert(key, Key) == key


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "x" * 201, "__meta__/a", "a.b", "a\n"])
def test_what_is_no_key_is_none_in_a_file_either(key: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(key, Key)


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "x" * 201, "ä" * 34, "__meta__/a", "\udcff"]
)
def test_a_name_that_makes_no_key_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="rename"):
        key_of(name)


def test_shares_are_known_answers() -> None:
    """From `printf "val\0002007_000032" | sha256sum`: the splits of packed sets hang on it."""
    assert share_of("2007_000032", "val") == pytest.approx(0xAFE82E90DE8E / 2**48, abs=1e-15)
    assert share_of("2007_000032", "label") == pytest.approx(0x7E72E0C824B3 / 2**48, abs=1e-15)


def test_a_tenth_of_the_keys_is_a_tenth_in_every_purpose_independently() -> None:
    keys = [f"c{number:05d}" for number in range(20_000)]
    val = {key for key in keys if share_of(key, "val") < 0.1}
    label = {key for key in keys if share_of(key, "label") < 0.1}
    assert abs(len(val) - 2000) < 150
    assert abs(len(val & label) - 200) < 60
