"""The command `stillroom`, also as `python -m stillroom`: finds what is asked for and runs it."""

import sys
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

# what each does; its module in `commands` has the same name
COMMANDS = {
    "check-data": "look pictures and masks over, before they are packed",
    "shards": "pack pictures and masks",
    "inspect": "what an ONNX network can be tapped at, and how it wants its pictures",
    "plan": "does a cache pay?",
    "cache": "stage 1: run the teachers once and keep what they say",
    "check-cache": "is a cache still what the teachers said?",
    "train": "stage 2: train a student",
    "evaluate": "scores, worst pictures and report.html of a run",
    "compare": "several runs in one table and page",
    "experiments": "several recipes and seeds: do what is missing, and compare",
    "predict": "pictures, folders and videos through a student",
    "export": "a student as ONNX, compared before it is called exported",
    "list": "data sets, caches and runs; caches that no run needs",
    "demo": "the whole way on synthetic pictures",
}


def main() -> NoReturn:
    """Run the command that the first word names."""
    from stillroom.cli import run_command

    name, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name in COMMANDS:
        command = import_module(f"stillroom.commands.{name.replace('-', '_')}").run
        sys.argv = [f"stillroom {name}", *words]
        run_command(command)
    run_command(lambda: _answer(name))


def _answer(name: str) -> None:
    from stillroom import __version__
    from stillroom.errors import UserError

    if name in ("--version", "-V"):
        print(f"stillroom {__version__}; {', '.join(_formats())}")
        return
    if name in ("", "-h", "--help"):
        print("usage: stillroom COMMAND ...   (COMMAND --help says more; --version)\n")
        print("\n".join(f"  {command:<12}{what}" for command, what in COMMANDS.items()))
        if name:
            return
        raise UserError("which command?", fix="one of these")
    near = get_close_matches(name, COMMANDS, 1)
    fix = f"stillroom {near[0]}" if near else "stillroom --help"
    raise UserError(f"there is no command {name!r}", wanted=", ".join(COMMANDS), fix=fix)


def _formats() -> list[str]:
    """Return the formats of what is written: pictures, caches, students, checkpoints."""
    from stillroom.cache.identity import FORMAT as CACHE
    from stillroom.pictures.dataset import FORMAT as PICTURES

    return [PICTURES, CACHE, "stillroom student 1", "stillroom checkpoint 2"]


if __name__ == "__main__":
    main()
