"""The command line: recipes by name or file, flags from dataclasses, errors as one short paragraph.

Exit status: 0 done, 2 a user's mistake, 1 a failure, 75 told to stop and saved. `--debug` shows
tracebacks.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import tyro

from stillroom.errors import StillroomError, UserError
from stillroom.recipe import Recipe
from stillroom.recipes import RECIPES


def run_command(function: Callable[[], object]) -> NoReturn:
    """Call `function` as a command of ours: print errors for people and exit with the status of the
    house.
    """
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        function()
    except StillroomError as error:
        if debug:
            raise
        _print_error(str(error))
        _exit(error.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        _print_error("interrupted")
        _exit(130)
    except Exception as error:
        if debug:
            raise
        name = type(error).__name__
        hint = "" if isinstance(error, OSError) else "\n  (--debug shows where)"
        _print_error(f"failed: {name}: {error}{hint}")
        _exit(1)
    _exit(0)


def _print_error(text: str) -> None:
    print(f"stillroom: {text}", file=sys.stderr, flush=True)


def _exit(status: int) -> NoReturn:
    """Leave with `status`; one of several ranks at once: a failure must not wait for the others'
    collectives, and gloo's threads aborted 3 of 23 orderly ends.
    """
    sys.stdout.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def recipe_from(words: Sequence[str] | None = None) -> Recipe:
    """Build the recipe that a command line (default: `sys.argv[1:]`) describes."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in {"-h", "--help"}:
        print(f"usage: {Path(sys.argv[0]).name} RECIPE [flags]   (RECIPE --help lists the flags)")
        print(f"recipes: {', '.join(RECIPES)}, or path/to/file.py:function")
        sys.exit(0 if words else 2)
    return tyro.cli(
        tyro.conf.AvoidSubcommands[Recipe],
        default=named_recipe(words[0]),
        args=words[1:],
        prog=f"{Path(sys.argv[0]).name} {words[0]}",
    )


def named_recipe(name: str) -> Recipe:
    """Return a recipe by name or by `path/to/file.py:function`; such a file is code and is run."""
    if ":" in name:
        return _recipe_from_file(*name.rsplit(":", 1))
    if name not in RECIPES:
        raise UserError(
            f"there is no recipe {name!r}",
            wanted=f"{', '.join(RECIPES)}, or path/to/file.py:function",
        )
    return RECIPES[name]()


def _recipe_from_file(path: str, function: str) -> Recipe:
    if not Path(path).is_file():
        raise UserError(f"there is no recipe file {path}", wanted="path/to/file.py:function")
    spec = importlib.util.spec_from_file_location("stillroom_recipe_file", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file", wanted="path/to/file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    make = getattr(module, function, None)
    recipe = make() if callable(make) else None
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"{path}:{function} gives no recipe",
            found=type(recipe if callable(make) else make).__name__,
            wanted="a function without arguments that returns a stillroom.recipe.Recipe",
        )
    return recipe
