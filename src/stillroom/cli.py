"""The command line: recipes by name or file, flags from dataclasses, errors as one short paragraph.

Exit status: 0 done, 2 a user's mistake, 1 a failure, 75 told to stop and saved. `--debug` shows
tracebacks and leaves the status as it is.
"""

import os
import select
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_args

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from stillroom.errors import StillroomError, UserError
from stillroom.flags import nearest, read, refuse_flag
from stillroom.os_errors import explained
from stillroom.recipe import Recipe
from stillroom.recipes import RECIPES
from stillroom.teachers.files import MissingTeacherError
from stillroom.user_code import load_function

_INTERRUPTED = 130  # as of a program that SIGINT ends
_UNREAD = 141  # as of a program that SIGPIPE ends
_NAMES = f"{', '.join(RECIPES)}, or path/to/file.py:function"


def run_command(function: Callable[[], object]) -> NoReturn:
    """Call `function` as a command of ours: print errors for people and exit with the status of the
    house.
    """
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        function()
    except StillroomError as error:
        _print_error(str(error), debug)
        _exit(error.exit_code)
    except KeyboardInterrupt:
        _print_error("interrupted", debug)
        _exit(_INTERRUPTED)
    except SystemExit as end:
        _exit(end.code)
    except Exception as error:
        _exit(_failed(error, debug))
    _exit(0)


def _failed(error: Exception, debug: bool) -> int:
    """Say what went wrong outside us, or in us, and return the status of it."""
    if isinstance(error, BrokenPipeError) and _is_unread():
        return _UNREAD
    if isinstance(error, OSError):
        again = "then run the same command again"
        told = explained(error, "the command cannot go on", Path(), "--out", again)
        if told is not None:
            _print_error(str(told), debug)
            return told.exit_code
    hint = "" if isinstance(error, OSError) else "\n  (--debug shows where)"
    _print_error(f"failed: {type(error).__name__}: {error}{hint}", debug)
    return 1


def _is_unread() -> bool:
    """Whether what reads our output has ended, as `head` does when it has seen enough."""
    poll = select.poll()
    poll.register(sys.__stdout__ or 1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _print_error(text: str, debug: bool) -> None:
    """Say what went wrong; with `debug`, where, of the error that is being handled."""
    if debug:
        traceback.print_exc()
    else:
        print(f"stillroom: {text}", file=sys.stderr, flush=True)


def _exit(status: int | str | None) -> NoReturn:
    """Leave with `status`; interrupted at once, whatever threads still do, and so does one of
    several ranks: a failure must not wait for the others' collectives, and gloo's threads aborted
    3 of 23 orderly ends.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _UNREAD
    if status == _UNREAD:  # what is still to be written goes nowhere, and nobody complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if status == _INTERRUPTED or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))
    sys.exit(status)


def recipe_from(words: Sequence[str] | None = None, others: Collection[str] = ()) -> Recipe:
    """Build the recipe that a command line (default: `sys.argv[1:]`) describes.

    `others` are flags that may be meant where one of a recipe is not there.
    """
    words, name = list(sys.argv[1:] if words is None else words), Path(sys.argv[0]).name
    if words and words[0] in {"-h", "--help"}:
        print(f"usage: {name} RECIPE [flags]   (RECIPE --help lists the flags)")
        print(f"recipes: {_NAMES}")
        sys.exit(0)
    if not words or words[0].startswith("-"):
        if words and nearest(words[0], others):
            refuse_flag(words[0], others, f"{name} --help")
        fix = f"{name} RECIPE [flags]"
        raise UserError("which recipe?", found=words[0] if words else None, wanted=_NAMES, fix=fix)
    default = named_recipe(words[0])
    recipe = read(
        tyro.conf.AvoidSubcommands[Recipe],
        words[1:],
        f"stillroom train {words[0]} --help",
        others,
        default=default,
        prog=f"{name} {words[0]}",
        registry=_registry(),
    )
    _require_named_files(default, recipe)
    return recipe


def _require_named_files(default: Recipe, recipe: Recipe) -> None:
    """Raise UserError for a teacher's file that the command line names and that is not there."""
    if recipe.run.recorded_teachers:
        return
    for before, teacher in zip(default.teachers, recipe.teachers, strict=True):
        try:
            if teacher != before:
                teacher.identity(with_files=True, recorded=())
        except MissingTeacherError as error:
            fix = f"{error.fix}; --run.recorded-teachers where stage 2 runs without it"
            raise UserError(error.what, found=error.found, wanted=error.wanted, fix=fix) from None


def _registry() -> ConstructorRegistry:
    """Let a field typed by a protocol have the flags of the value that stands in the recipe."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def by_value(info: StructTypeInfo) -> Any:
        value = info.default
        if isinstance(value, tuple) and any(map(_is_protocol, get_args(info.type))):
            items = [
                StructFieldSpec(name=f"{i}", type=type(item), default=item, helptext=None)
                for i, item in enumerate(value)
            ]
            return StructConstructorSpec(instantiate=tuple, fields=tuple(items))
        if is_dataclass(value) and _is_protocol(info.type):
            return registry.get_struct_spec(StructTypeInfo.make(type(value), value, False))
        return None

    return registry


def _is_protocol(kind: Any) -> bool:
    return getattr(kind, "_is_protocol", False)


def named_recipe(name: str) -> Recipe:
    """Return a recipe by name or by `path/to/file.py:function`; such a file is code and is run."""
    if ":" in name:
        recipe = load_function(name)()
        if not isinstance(recipe, Recipe):
            raise UserError(
                f"{name} gives no recipe",
                found=type(recipe).__name__,
                wanted="a function without arguments that returns a stillroom.recipe.Recipe",
            )
        return recipe
    if name not in RECIPES:
        near = [f"{name}:FUNCTION"] if name.endswith(".py") else get_close_matches(name, RECIPES, 1)
        fix = f"{near[0]}; stillroom train --help lists all recipes" if near else None
        raise UserError(f"there is no recipe {name!r}", wanted=None if near else _NAMES, fix=fix)
    return RECIPES[name]()
