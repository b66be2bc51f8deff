"""A command line, read by tyro or argparse; what they refuse becomes one short paragraph that names
the nearest flag.
"""

import argparse
import contextlib
import functools
import io
import itertools
import re
import sys
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import tyro

from stillroom.errors import StillroomError, UserError


class Parser(argparse.ArgumentParser):
    """argparse for flags that may stand among those of a recipe; its errors are ours."""

    def __init__(self, **options: Any) -> None:
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=kind, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(message, fix=f"{self.prog} --help")

    def flags(self) -> set[str]:
        """Return the flags that it knows."""
        return _flags_in(self.format_help())


def call(
    function: Callable[..., object],
    words: Sequence[str] | None = None,
    others: Collection[str] = (),
    **fields: Any,
) -> None:
    """Call a function with what a command line (default: `sys.argv[1:]`) gives it, and `fields`.

    Raises UserError as `read` does; while the function runs, nothing of that is in the way.
    """
    name = Path(sys.argv[0]).name

    def kept(*args: Any, **given: Any) -> Callable[[], object]:
        return functools.partial(function, *args, **given | fields)

    words = sys.argv[1:] if words is None else words
    read(functools.wraps(function)(kept), words, f"{name} --help", others, prog=name)()


def read(
    kind: Any, words: Sequence[str], help_words: str, others: Collection[str] = (), **options: Any
) -> Any:
    """Return what a command line says; `options` are those of `tyro.cli`.

    Raises UserError for what cannot be: a flag that is not there is answered with the nearest, of
    these and of `others`; `help_words` is the command that lists them.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            value, rest = tyro.cli(kind, args=words, return_unknown_args=True, **options)
    except SystemExit as end:
        if not end.code:
            raise
        refused = _ours(end) or _refusal(box.getvalue(), words, help_words)
    else:
        if not rest:
            return value
        refused = UserError("a word too many", found=rest[0], fix=help_words)
    flags = _flags_of(kind, options) | {*others}
    for word in words:
        if word.startswith("--") and _name(word) not in map(_name, flags):
            refuse_flag(word, flags, help_words)
    raise refused


def refuse_flag(word: str, flags: Collection[str], help_words: str) -> NoReturn:
    """Raise UserError for a flag that is not there, with those that are meant."""
    near = nearest(word, flags)
    fix = " or ".join(near) if near else f"{help_words} lists them"
    raise UserError(f"there is no flag {word}", fix=fix)


def nearest(word: str, flags: Collection[str]) -> list[str]:
    """Return the flags whose last part a word is (`--lr` of `--optimizer.lr`), or else the most
    similar one, if any.
    """
    name = _name(word)
    same = sorted(flag for flag in flags if flag.endswith(f".{name[2:]}"))
    return same[:3] or get_close_matches(name, sorted(flags), 1)


def _name(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")


def _flags_of(kind: Any, options: dict[str, Any]) -> set[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], **options)
    return _flags_in(text.getvalue())


def _flags_in(text: str) -> set[str]:
    """Return the flags that a help text lists; those that it only mentions begin no line."""
    listed = re.findall(r"^[│ ]*(-\S.*?)(?:  |$)", _plain(text), re.M)
    return {flag for line in listed for flag in re.findall(r"--[A-Za-z][\w.-]*", line)}


def _plain(text: str) -> str:
    """Return what tyro prints without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _ours(end: BaseException | None) -> StillroomError | None:
    """Return the error of a field's own check that made tyro end, if that is what did."""
    while end is not None and not isinstance(end, StillroomError):
        end = end.__context__
    return end


def _refusal(box: str, words: Sequence[str], help_words: str) -> UserError:
    """Return the paragraph of the box that tyro prints, which has a title, rules and a frame."""
    lines = [line.strip(" │") for line in _plain(box).splitlines()[1:]]
    text = " ".join(line for line in lines if line.strip("─-╭╮╰╯"))
    what, _, wanted = text.partition("For full helptext")[0].partition("Argument helptext:")
    flag = what.partition("Error parsing ")[2].partition(":")[0]
    if wanted and flag in words:
        given = itertools.takewhile(lambda w: w[:2] != "--", words[words.index(flag) + 1 :])
        wanted = re.sub(r"^\S+ |\{None\}\||[{}]", "", wanted.strip())
        return UserError(
            f"{flag} is not understood", found=" ".join(given) or "nothing", wanted=wanted
        )
    what = what.partition("Got errors:")[0].strip(" .")
    return UserError(what[:1].lower() + what[1:], fix=help_words)
