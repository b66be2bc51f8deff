"""Write docs/flags.md: every command and every part of a recipe with its flags, from their parsers.

    python docs/write_flags.py

tests/test_docs_commands.py compares the page with what would be written now.
"""

import argparse
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro

from stillroom.__main__ import COMMANDS
from stillroom.cli import _registry
from stillroom.losses import feature_terms, label_terms, logit_terms
from stillroom.pictures.views import Views
from stillroom.recipe import Augment, Data, Recipe, Run
from stillroom.recipe_optimizer import (
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    CosineTail,
    Plateau,
    StepDecay,
)
from stillroom.recipes import RECIPES
from stillroom.students import definitions, pretrained
from stillroom.teachers import configs, own_configs

PAGE = Path(__file__).with_name("flags.md")
OF_RECIPES = {"cache", "train"}  # nothing but RECIPE and its flags
# where a name differs from its module, and what a parser does not know of itself
FUNCTIONS = {"check-data": "check_data", "shards": "make_shards"}
HEAD = """
Made by `python docs/write_flags.py` from the parsers themselves; a test compares. `stillroom
COMMAND --help` and `stillroom train RECIPE --help` say the same, the latter with the values of the
recipe. `--debug` (tracebacks) goes with every command. A flag without an argument has a `--no-`
form.
"""
RECIPE_HEAD = """
Of `stillroom cache`, `train`, `plan`, `check-cache`, `experiments` and `evaluate --teacher`: every
field of the recipe is one. Defaults are those of the field; a recipe may say otherwise. N is the
number of a teacher or term, from 0, in the order of the recipe.
"""
PARTS: dict[str, Iterable[type]] = {
    "data": [Data],
    "views": [Views],
    "augment": [Augment],
    "optimizer": [AdamW, Adam, SGD],
    "schedule": [Cosine, CosineTail, StepDecay, Constant, Plateau],
    "student": [],
    "teachers.N": [],
    "terms.N": [],
    "run": [Run],
}
MODULES = {
    "student": [definitions, pretrained],
    "teachers.N": [configs, own_configs],
    "terms.N": [label_terms, logit_terms, feature_terms],
}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


def page() -> str:
    """Return the page as it should be."""
    parts = ["# Every flag\n", _text(HEAD)]
    for name, what in COMMANDS.items():
        parts.append(
            f"## stillroom {name}\n\n{what[0].upper()}{what[1:]}{'' if what[-1] == '?' else '.'}\n"
        )
        parts.append("RECIPE and its flags, below.\n" if name in OF_RECIPES else _command(name))
    parts += ["## Flags of a recipe\n", _text(RECIPE_HEAD), _table(_top_level())]
    for prefix, classes in PARTS.items():
        found = [*classes, *_classes(MODULES.get(prefix, ()))]
        for one in found:
            title = f"`--{prefix}`" + (f": {one.__name__}" if len(found) > 1 else "")
            said = (one.__doc__ or "").strip().partition("\n\n")[0]
            parts += [f"### {title}\n", _text(said), _table(_rows(_parser(one), f"{prefix}."))]
    return "\n".join(parts)


def _command(name: str) -> str:
    module: Any = import_module(f"stillroom.commands.{name.replace('-', '_')}")
    if hasattr(module, "parser"):
        return _table(_rows(module.parser()))
    function = getattr(module, FUNCTIONS.get(name, "main"))
    said = (function.__doc__ or "").partition("Args:")[0].strip().split("\n\n")[1:]
    more = "".join(f"{_text(paragraph)}\n" for paragraph in said)
    return more + _table(_rows(_parser(function)))


def _parser(described: Callable[..., Any]) -> argparse.ArgumentParser:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # no other way gives the actions
        return tyro.extras.get_parser(described, registry=_registry())


def _top_level() -> list[tuple[str, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(
            tyro.conf.AvoidSubcommands[Recipe], default=RECIPES["tiny"](), registry=_registry()
        )
    fields = {f"--{name.replace('_', '-')}": f for name, f in Recipe.__dataclass_fields__.items()}
    rows = []
    for flag, default, what in _rows(parser):
        name = flag.strip("`").split(" ")[0]
        if name in fields:
            rows.append((flag, _shown(fields[name].default) if default else "", what))
    return [*rows, ("`--codec.TARGET STR`", "", "how a target is kept: caches.md")]


def _shown(default: Any) -> str:
    if not isinstance(default, str | int | float | tuple | None):
        return ""
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _classes(modules: Iterable[Any]) -> list[type]:
    """Return the dataclasses that these modules define and that a recipe names."""
    return [
        one
        for module in modules
        for one in vars(module).values()
        if is_dataclass(one) and one.__module__ == module.__name__
        if not re.match("On[A-Z]", one.__name__)  # what several terms share
    ]


def _rows(parser: argparse.ArgumentParser, prefix: str = "") -> list[tuple[str, ...]]:
    rows = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or "--help" in action.option_strings:
            continue
        if action.dest == "debug":
            continue
        said = " ".join((action.help or "").replace("%%", "%").split())
        what, _, default = said.partition(" (default: ")
        what, required = re.subn(r" ?\(required\)$", "", what)
        names = [name for name in action.option_strings if not re.search(r"--(.*\.)?no-", name)]
        flag = f"--{prefix}{names[0][2:]} {_argument(action)}" if names else action.dest.upper()
        default = "required" if required else default.removesuffix(")")
        rows.append((f"`{flag.strip()}`", default, what))
    return rows


def _text(paragraph: str) -> str:
    return textwrap.fill(" ".join(paragraph.split()), 115, break_on_hyphens=False) + "\n"


def _argument(action: argparse.Action) -> str:
    """Return what stands after a flag, in few signs: `{None}|{INT INT}` is INT INT."""
    text = re.sub(r"^\{None\}\|\{?(.*?)\}?$", r"\1", str(action.metavar or ""))
    return re.sub(r"^\[(\S+) \[\1 \.\.\.\]\]$", r"\1 ...", text)


def _table(rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return "No flags.\n"
    lines = ["| flag | default | what |", "|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
