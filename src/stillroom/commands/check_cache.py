"""Check a cache, on request against its teachers, and mend it.

stillroom check-cache CACHE
stillroom check-cache CACHE RECIPE [recipe flags] --rerun 64
stillroom check-cache CACHE RECIPE [recipe flags] --audit
stillroom check-cache CACHE RECIPE [recipe flags] --repair
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys

from stillroom.cli import recipe_from
from stillroom.errors import UserError
from stillroom.flags import Parser

EPILOG = """\
CACHE is a cache folder, or a folder with exactly one cache in it. Without RECIPE the check is of
the cache alone. RECIPE and its flags are those of stillroom cache (RECIPE --help there lists
them); they name the teachers and the picture shards.

Every problem is one line on stdout; a note is no problem. Exit status: 0 all is well (after a
repair: now), 1 something is damaged or missing, 2 a user's mistake, 75 told to stop.
"""


def run() -> None:
    # our own flags, wherever they stand; the other words are CACHE, RECIPE and its flags
    own, words = parser().parse_known_args()
    with contextlib.redirect_stdout(sys.stderr if own.json else sys.stdout):
        found = _check(own, words)
    if own.json:
        print(json.dumps(found.as_json(), allow_nan=False, default=str))
    else:
        print("\n".join(found.lines()))
    sys.exit(0 if found.is_well else 1)


def _check(own: argparse.Namespace, words: list[str]):
    from stillroom.checking.run_check import CheckOptions, run_check
    from stillroom.recipe import Run

    if not words or words[0].startswith("-"):
        raise UserError("which cache?", fix="stillroom check-cache CACHE (--help says more)")
    recipe = recipe_from(words[1:], parser().flags()) if words[1:] else None
    names = [field.name for field in dataclasses.fields(CheckOptions)]
    options = CheckOptions(**{name: getattr(own, name) for name in names})
    if recipe is not None and own.shards is not None:
        data = dataclasses.replace(recipe.data, shards=own.shards)
        recipe = dataclasses.replace(recipe, data=data)
    given = {"local": own.local, "local_gb": own.local_gb}
    run = dataclasses.replace(
        Run() if recipe is None else recipe.run,
        **{name: value for name, value in given.items() if value is not None},
    )
    recipe = None if recipe is None else dataclasses.replace(recipe, run=run)
    shards = None if own.shards is None else run.place(own.shards)
    return run_check(run.place(words[0]), recipe, shards, options)


def parser() -> Parser:
    """Return the parser of the flags that are not the recipe's."""
    own = Parser(
        usage="%(prog)s CACHE [RECIPE [recipe flags]] [flags]",
        description=(__doc__ or "").partition("\n")[0],
        epilog=EPILOG,
    )
    add = own.add_argument
    add("--rerun", type=int, metavar="N", help="run RECIPE's teachers again on N random rows and"
        " compare with what is stored (default: no row)")  # fmt: skip
    add("--rerun-seed", dest="seed", type=int, default=0, metavar="SEED", help="which rows"
        " (default: 0)")  # fmt: skip
    add("--audit", type=int, nargs="?", const=16, metavar="N", help="compare what RECIPE's teachers"
        " say of N mirrored, cropped and scaled pictures with what they say of the pictures, so"
        " transformed, and keep the figures with the cache: stage 2 mirrors targets only where they"
        " allow it (default: no row; without N: 16)")  # fmt: skip
    add("--repair", action="store_true", help="move what is broken to quarantine/ and, with"
        " RECIPE, make just that again (default: nothing is written)")  # fmt: skip
    add("--gc", action="store_true", help="remove temporary folders of dead writers: of this host"
        " without a process of that number, or of another host and not written for 24 hours"
        " (default: they are listed)")  # fmt: skip
    add("--shards", metavar="FOLDER", help="picture shards to compare with (default:"
        " RECIPE's data.shards; without RECIPE none)")  # fmt: skip
    add("--run.local", dest="local", metavar="FOLDER", help="where copies of what lies in a store"
        " are kept (default: RECIPE's run.local, or stillroom/ in the user's folder for"
        " caches)")  # fmt: skip
    add("--run.local-gb", dest="local_gb", type=float, metavar="GB", help="most that is kept there"
        " (default: RECIPE's run.local_gb, or as before)")  # fmt: skip
    workers = min(8, os.cpu_count() or 1)
    add("--workers", type=int, default=workers, metavar="N", help="threads that read (default: as"
        " many as there are cores, at most 8)")  # fmt: skip
    add("--json", action="store_true", help="one JSON object on stdout and nothing else there"
        " (default: text)")  # fmt: skip
    add("--debug", action="store_true", help="show tracebacks (default: one paragraph)")
    return own
