"""What recipes and seeds take, as jobs in dependency order: pictures, the runs of teachers, caches,
one training a seed, evaluations.

Whether a job is done stands on disk and is asked for when its turn comes: which cache is meant is
known only once its teacher's run is finished.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stillroom.errors import UserError
from stillroom.jsonfile import read_json
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.recipe import Recipe
from stillroom.remote.store import is_url
from stillroom.students.begin import begin_of
from stillroom.teachers.configs import RunTeacher
from stillroom.training.find_cache import find_cache
from stillroom.training.run_folder import is_finished, require_free
from stillroom.training.setup import with_class_counts

_RUNS = Path("runs")  # where recipes name the runs that they need


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One command of ours, and what must be done before."""

    name: str
    needs: tuple[str, ...]  # names of jobs
    is_done: Callable[[], bool]
    words: Callable[[], list[str]]  # the script and its words, as it is to be called now


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for."""

    words: Sequence[str]  # recipes, as on the command line
    seeds: Sequence[int]
    flags: Sequence[str]  # of every recipe
    source: str | None  # words of stillroom shards, without --out
    known: Mapping[str, str]  # recipes whose runs may be needed: name -> word
    build: Callable[[str], Recipe]  # makes the recipe of a word, with `flags`


def plan(request: Request) -> tuple[list[Job], list[Path]]:
    """Return the jobs, those first that others need, and the runs that they leave.

    Raises UserError for runs that would clash with one another or with runs of other recipes that
    are there, and for pictures that are neither there nor have a source.
    """
    planner = _Planner(request)
    recipes = {word: request.build(word) for word in request.words}
    names = [recipes[word].name for word in request.words]
    if len(set(names)) < len(names):
        raise UserError(
            "two recipes would have runs of one name",
            found=", ".join(names),
            fix="name each recipe once, and give those of a file names of their own",
        )
    needed = {name for recipe in recipes.values() for name in planner.needed(recipe).values()}
    for word, recipe in recipes.items():
        for seed in [None] if recipe.name in needed else request.seeds:
            planner.add_run(word, recipe, seed)
    planner.require_source()
    return list(planner.jobs.values()), planner.runs


class _Planner:
    """Jobs as they are found, each once."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.jobs: dict[str, Job] = {}
        self.runs: list[Path] = []
        self._unpacked: list[Path] = []  # folders of picture shards that are not there
        self._open: list[str] = []  # runs whose needs are being found
        self._given = {word.partition("=")[0].replace("_", "-") for word in request.flags}

    def needed(self, recipe: Recipe) -> dict[str, str]:
        """Return the recipes whose runs this one needs, by the flag that says where the run lies.

        A flag that was given names a run of the user's own.
        """
        paths = {"--student.begin": begin_of(recipe.student)}
        for i, teacher in enumerate(recipe.teachers if recipe.wanted_targets() else ()):
            if isinstance(teacher, RunTeacher):
                paths[f"--teachers.{i}.path"] = teacher.path
        return {
            flag: Path(path).name
            for flag, path in paths.items()
            if path is not None and Path(path).parent == _RUNS and flag not in self._given
            if Path(path).name in self.request.known
        }

    def add_run(self, word: str, recipe: Recipe, seed: int | None) -> str:
        """Add all that a run takes and return the name of its training; without a seed it is the
        one run of its recipe, for others that need it.
        """
        name = recipe.name if seed is None else f"{recipe.name}-seed{seed}"
        training, known, out = f"train {name}", self.request.known, Path(recipe.run.out)
        if name in self._open:
            raise UserError("a run needs itself", found=" -> ".join([*self._open, name]))
        if training in self.jobs:
            return training
        self._open.append(name)
        shards = recipe.data.shards
        needs = [] if is_url(shards) else self._pack(Path(shards))
        paths = self.needed(recipe)
        for other in paths.values():
            needs.append(self.add_run(known[other], self.request.build(known[other]), None))
        self._open.pop()
        paths = {flag: f"{out / other}" for flag, other in paths.items() if out != _RUNS}
        recipe = _placed(recipe, paths)
        words = [word, *self.request.flags, *(w for pair in paths.items() for w in pair)]
        if recipe.wanted_targets():
            cached = f"cache {recipe.name}"
            stage_1 = ["cache", *words]
            self._add(cached, needs, lambda: _has_cache(recipe), lambda: stage_1)
            needs = [cached]
        self._add_training(recipe, words, out / name, seed, needs)
        return training

    def _add_training(
        self, recipe: Recipe, words: list[str], run: Path, seed: int | None, needs: list[str]
    ) -> None:
        """Add a training and its evaluation. The run that others need is done when it is finished,
        however it was trained; one of a seed is to be what was asked for.
        """
        self.runs.append(run)
        words = ["train", *words, "--run.name", run.name]
        if seed is not None:
            words += ["--seed", f"{seed}"]
            _require_same(replace(recipe, seed=seed), run)

        def is_done() -> bool:
            done = (run / "receipt.json").is_file()
            return done if seed is None else is_finished(run, recipe.epochs)

        self._add(f"train {run.name}", needs, is_done, lambda: [*words, *_how_to_begin(run)])
        evaluation = ["evaluate", f"{run}", "--cache", recipe.run.cache]
        if (code := getattr(recipe.student, "factory", None)) is not None:
            evaluation += ["--code", code]
        if recipe.run.device != "cpu" and torch.cuda.is_available():
            evaluation += ["--device", "cuda"]
        self._add(
            f"evaluate {run.name}",
            [f"train {run.name}"],
            lambda: _is_evaluated(run),
            lambda: evaluation,
        )

    def _pack(self, folder: Path) -> list[str]:
        """Add the packing of pictures that are not there; return the job that is needed, if any."""

        def is_done() -> bool:
            return (folder / "dataset.json").is_file()

        if is_done():
            return []
        name = f"pack {folder}"
        if name not in self.jobs:
            self._unpacked.append(folder)
        source = shlex.split(self.request.source or "")
        self._add(name, [], is_done, lambda: ["shards", *source, "--out", f"{folder}"])
        return [name]

    def require_source(self) -> None:
        """Raise UserError unless one folder is missing at most, and has a source where it is."""
        if len(self._unpacked) > (self.request.source is not None):
            raise UserError(
                "there are no picture shards",
                found=f"nothing in {', '.join(map(str, self._unpacked))}",
                fix=f"stillroom shards SOURCE --size H W --out {self._unpacked[0]}; or,"
                " for one folder, --source 'SOURCE --size H W' here",
            )

    def _add(
        self,
        name: str,
        needs: Sequence[str],
        is_done: Callable[[], bool],
        words: Callable[[], list[str]],
    ) -> None:
        if name not in self.jobs:
            self.jobs[name] = Job(name=name, needs=tuple(needs), is_done=is_done, words=words)


def _placed(recipe: Recipe, paths: Mapping[str, str]) -> Recipe:
    """Return a recipe with the runs that it needs at these paths, by flag."""
    teachers: list[Any] = list(recipe.teachers)
    for i, teacher in enumerate(teachers):
        if path := paths.get(f"--teachers.{i}.path"):
            teachers[i] = replace(teacher, path=path)
    student: Any = recipe.student
    if begin := paths.get("--student.begin"):
        student = replace(student, begin=begin)
    return replace(recipe, teachers=tuple(teachers), student=student)


def _require_same(recipe: Recipe, run: Path) -> None:
    """Raise UserError where a run of that name is there and is another recipe's."""
    if not (run / "recipe.json").is_file():
        return
    counted = with_class_counts(recipe, _pictures(recipe), nullcontext())
    try:
        require_free(replace(counted, run=replace(recipe.run, name=run.name, resume=True)))
    except UserError as error:
        fix = "the flags that it was trained with, or another --run.out"
        raise UserError(error.what, found=error.found, wanted=error.wanted, fix=fix) from None


def _has_cache(recipe: Recipe) -> bool:
    """Return whether stage 2 would find a complete cache; whether it may mirror it says itself."""
    unmirrored = replace(recipe, augment=replace(recipe.augment, mirror=False))
    try:
        return find_cache(unmirrored, _pictures(recipe), False) is not None
    except UserError:
        return False


def _how_to_begin(run: Path) -> list[str]:
    if any(run.glob("checkpoints/step-*")) or (run / "receipt.json").is_file():
        return ["--run.resume"]
    return ["--run.overwrite"] if (run / "recipe.json").is_file() else []  # nothing was saved yet


def _is_evaluated(run: Path) -> bool:
    if not (run / "evaluation.json").is_file():
        return False
    found, wanted = (read_json(run / f"{name}.json") for name in ("evaluation", "student"))
    return found.get("weights_sha256") == wanted.get("weights_sha256")


def _pictures(recipe: Recipe) -> PictureSet:
    return open_pictures(recipe.run.place(recipe.data.shards))
