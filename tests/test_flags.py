"""A command line is read by tyro and refused in our own words."""

import sys
from typing import Literal

import pytest
import tyro

from stillroom.errors import UserError
from stillroom.flags import call, nearest

FLAGS = {"--optimizer.lr", "--epochs", "--freeze-epochs", "--terms.0.weight", "--terms.1.weight"}


def said(
    picture: tyro.conf.Positional[str],
    size: tuple[int, int] | None = None,
    mode: Literal["a", "b"] = "a",
    more: int = 0,
) -> None:
    """Say what was given.

    Args:
        picture: which
        size: height and width
        mode: which of two
        more: another number
    """
    print(picture, size, mode, more)
    print("while it runs", file=sys.stderr)


def test_the_nearest_flag_is_the_one_of_that_last_part_or_the_most_similar():
    assert nearest("--lr", FLAGS) == ["--optimizer.lr"]
    assert nearest("--weight", FLAGS) == ["--terms.0.weight", "--terms.1.weight"]
    assert nearest("--epoch=3", FLAGS) == ["--epochs"]
    assert nearest("--freeze_epoch", FLAGS) == ["--freeze-epochs"]
    assert nearest("--colour", FLAGS) == []


def test_a_function_gets_its_flags_and_what_it_says_is_said(capsys):
    call(said, ["a.png", "--size", "3", "4"], more=5)
    printed = capsys.readouterr()
    assert printed.out == "a.png (3, 4) a 5\n" and printed.err == "while it runs\n"


@pytest.mark.parametrize("width", ["30", "200"])
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("a.png --sise 3 4", "there is no flag --sise\n  fix:    --size"),
        ("--mood b", "there is no flag --mood\n  fix:    --mode"),
        ("a.png b.png", "a word too many\n  found:  b.png\n  fix:    tool.py --help"),
        ("a.png --size 3", "--size is not understood\n  found:  3\n  wanted: INT INT height and"
         " width (default: None)"),
        ("a.png --mode c", "invalid choice 'c' for argument '--mode'. Expected one of ('a', 'b')"
         "\n  fix:    tool.py --help"),
        ("", "missing from tool.py: STR which (required)\n  fix:    tool.py --help"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_paragraph_whatever_the_terminal(words, wanted, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr(sys, "argv", ["/some/where/tool.py"])
    with pytest.raises(UserError) as refused:
        call(said, words.split())
    assert str(refused.value) == wanted


def test_an_error_of_the_function_is_its_own():
    def fail(number: tyro.conf.Positional[int]) -> None:
        raise ValueError(f"not {number}")

    with pytest.raises(ValueError, match="not 3"):
        call(fail, ["3"])
