"""Several recipes and seeds: do what is missing (pictures, teachers' runs, caches, trainings,
evaluations), in dependency order, and compare.

    stillroom experiments RECIPE... --seeds 0 1 2 [flags of every recipe]

One after another, or one per GPU. What fails is recorded, what depends on it is skipped, everything
else goes on. SIGTERM and Ctrl-C are passed on, so that trainings save; the same command goes on
from there and does nothing twice.
"""

import argparse
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.cli import named_recipe, recipe_from
from stillroom.errors import FailureError, Stopped, UserError
from stillroom.flags import Parser
from stillroom.jsonfile import read_json, write_json
from stillroom.recipes import RECIPES

EPILOG = """\
Flags that are not listed here are those of the recipes (stillroom train RECIPE --help lists them)
and go to every one, teachers' recipes too. Runs lie in --run.out as RECIPE-seedN. Where a recipe
needs runs/NAME (of a teacher, or to begin from) and NAME is a recipe, of ours or named here, that
run lies there as NAME and is trained once; one that is finished is taken as it is, however it was
trained.

Exit status: 0 all is done, 1 something failed, 2 a user's mistake, 75 told to stop.
"""
# flags of recipes that would say the same of all runs, and what to say instead
REFUSED = {
    "seed": "--seeds",
    "name": "recipes with names of their own",
    "run.name": "no name: runs are named after recipe and seed",
    "run.resume": "nothing: what has begun goes on",
    "run.overwrite": "another --run.out, or remove the run",
    "run.additional-epochs": "a larger --epochs, and another --run.out",
}


def run() -> None:
    from stillroom.experiments.jobs import Job, Request, plan
    from stillroom.experiments.run_jobs import Process, find_places, run_jobs
    from stillroom.signals import stop_on_signals

    words, own, flags = parse(sys.argv[1:])
    named = {named_recipe(word).name: word for word in words}
    request = Request(
        words=words,
        seeds=own.seeds,
        flags=flags,
        source=own.source,
        known={name: name for name in RECIPES} | named,
        build=lambda word: recipe_from([word, *flags], parser().flags()),
    )
    jobs, runs = plan(request)
    run = request.build(words[0]).run
    out = own.out or Path(run.out) / "experiments"
    out.mkdir(parents=True, exist_ok=True)
    book = Book(out / "experiments.json", {"recipes": words, "seeds": own.seeds, "flags": flags})

    def start(job: Job, place: Mapping[str, str]) -> Process:
        log = out / "logs" / f"{re.sub('[^A-Za-z0-9._-]+', '-', job.name)}.log"
        return Process(["-m", "stillroom", *job.words()], log, place)

    with stop_on_signals(signal.SIGINT) as stop:
        records = run_jobs(jobs, find_places(run.device), start, stop, book.tell)
    bad = [f"{name} {record['state']}" for name, record in records.items() if is_bad(record)]
    if stop.is_set() and len(records) - len(bad) < len(jobs):
        found = f"{len(records) - len(bad)} of {len(jobs)} jobs are done; {book.path}"
        raise Stopped("told to stop", found=found, fix="the same command goes on from here")
    compare_finished(runs, out)
    if bad:
        raise FailureError(
            f"{len(bad)} of {len(jobs)} jobs are not done",
            found=", ".join(bad),
            fix=f"{book.path} has the reasons; the same command does what is missing",
        )


def is_bad(record: Mapping[str, Any]) -> bool:
    return record["state"] != "done"


class Book:
    """experiments.json: how each job ended when it last ran."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self._about = path, about
        self._jobs: dict[str, Any] = read_json(path)["jobs"] if path.is_file() else {}

    def tell(self, name: str, record: dict[str, Any]) -> None:
        """Print and write how a job begins or ends; one that was done before stays as it was."""
        is_there = record == {"state": "done"}
        if not is_there or is_bad(self._jobs.get(name, {"state": ""})):
            self._jobs[name] = record
        write_json(self.path, {**self._about, "jobs": self._jobs})
        text = f"{name}: {record['state']}{' already' * is_there}"
        text += f" in {record['seconds']:.0f} s" if "seconds" in record else ""
        text += f", {record['log']}" if record["state"] in ("running", "failed") else ""
        print(f"{text}: {record['reason']}" if "reason" in record else text, flush=True)


def compare_finished(runs: Sequence[Path], out: Path) -> None:
    from stillroom.using.comparison import compare
    from stillroom.using.comparison_table import write_comparison

    finished = [run for run in runs if (run / "receipt.json").is_file()]
    if finished:
        print(f"\n{write_comparison(compare(finished), out)}\n\n{out / 'comparison.png'}")
    else:
        print("\nno run is finished: there is nothing to compare")


def parse(words: Sequence[str]) -> tuple[list[str], argparse.Namespace, list[str]]:
    """Return the recipes, our own flags and those of the recipes; UserError for flags that cannot
    be.
    """
    number = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    own, flags = parser().parse_known_args(words[number:])
    _require_flags(words[number:], own.seeds)
    if not number:
        raise UserError("which recipes?", wanted=f"{', '.join(RECIPES)}, or FILE.py:FUNCTION")
    return list(words[:number]), own, flags


def parser() -> Parser:
    """Return the parser of the flags that are not the recipes'."""
    own = Parser(
        usage="%(prog)s RECIPE... [--seeds N N ...] [flags]",
        description=(__doc__ or "").partition("\n\n")[0],
        epilog=EPILOG,
    )
    add = own.add_argument
    add("--seeds", type=int, nargs="+", default=[0], metavar="N", help="one training of each recipe"
        " with each (default: 0)")  # fmt: skip
    add("--source", metavar="WORDS", help="words of stillroom shards, quoted, to pack pictures"
        " that are missing: 'voc:PATH --size 256 256' (default: they must be there)")  # fmt: skip
    add("--out", type=Path, metavar="FOLDER", help="for logs, experiments.json and the table,"
        " comparison.txt, .csv, .json and .png (default: experiments/ in --run.out)")  # fmt: skip
    return own


def _require_flags(words: Sequence[str], seeds: Sequence[int]) -> None:
    given = [re.sub(r"(^|\.)no-", r"\1", w[2:].partition("=")[0].replace("_", "-"))
             for w in words if w.startswith("--")]  # fmt: skip
    if twice := [name for i, name in enumerate(given) if name in given[:i]]:
        raise UserError("a flag is given twice", found=f"--{twice[0]}", wanted="each flag once")
    if refused := [name for name in given if name in REFUSED]:
        raise UserError(
            "a flag would be the same for all runs, so their names or results would clash",
            found=f"--{refused[0]}",
            wanted=REFUSED[refused[0]],
        )
    if len(set(seeds)) < len(seeds):
        raise UserError("a seed is given twice", found=" ".join(map(str, seeds)))
