"""What `tools/check_cache.py` does, in order: check, run again, repair, collect garbage."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from stillroom.cache.folder import BODIES, Cache, open_cache
from stillroom.cache.scrub import Problem
from stillroom.checking.check import Report, check_cache, find_folder, open_or_say, stated
from stillroom.checking.leftovers import Leftover, remove_dead
from stillroom.checking.repair import repair
from stillroom.checking.rerun import Compared, draw, refuse_other_teachers, rerun
from stillroom.errors import UserError
from stillroom.extraction.process import ProcessContext, process_context
from stillroom.os_errors import explain_os_errors
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.recipe import Recipe
from stillroom.teachers.configs import MissingTeacherError
from stillroom.types import ShardId

_Body = Literal["zarr", "tar"]  # as in Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """What the user asked for beside the check."""

    rerun: int | None = None  # rows to run the teachers again on; None = none
    seed: int = 0  # of the draw of these rows
    repair: bool = False
    gc: bool = False
    workers: int = 2  # threads that read

    def __post_init__(self) -> None:
        if self.rerun is not None and self.rerun < 1:
            raise UserError("no such number of rows", found=f"--rerun {self.rerun}", wanted=">= 1")
        if self.workers < 1:
            raise UserError("no such number of threads", found=f"--workers {self.workers}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """Everything that there is to say afterwards."""

    report: Report
    compared: tuple[Compared, ...] = ()
    repaired: tuple[str, ...] = ()
    removed: tuple[Leftover, ...] = ()
    fix: str | None = None  # the command that mends what is left

    @property
    def is_well(self) -> bool:
        """True where nothing is damaged or missing (any more)."""
        return not self.report.problems

    def lines(self) -> list[str]:
        """Return the text: problems, notes, figures, what was done, and the summary."""
        lines = [f"{problem.kind}: {problem.what}" for problem in self.report.problems]
        lines += [f"note: {note}" for note in self.report.notes]
        lines += [line for compared in self.compared for line in compared.lines()]
        lines += [f"repaired: {what}" for what in self.repaired]
        lines += [f"removed: {leftover}" for leftover in self.removed]
        lines += [] if self.fix is None else [f"fix: {self.fix}"]
        return [*lines, self.report.summary]

    def as_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        report = self.report
        return {
            "cache": str(report.cache),
            "is_well": self.is_well,
            "problems": [_plain(problem) for problem in report.problems],
            "notes": list(report.notes),
            "shards": report.num_shards,
            "rows": report.num_rows,
            "bytes": report.num_bytes,
            "seconds": round(report.seconds, 3),
            "rerun": {compared.target: compared.as_json() for compared in self.compared},
            "repaired": list(self.repaired),
            "removed": [str(leftover.path) for leftover in self.removed],
            "fix": self.fix,
        }


def run_check(
    path: Path, recipe: Recipe | None, shards: Path | None, options: CheckOptions
) -> CheckResult:
    """Check the cache that `path` names, and do what is wished.

    `shards` are picture shards to compare with; those of the recipe where absent. Raises UserError
    for what cannot be done as asked, before anything is written.
    """
    folder = find_folder(path)
    if recipe is None and options.rerun is not None:
        fix = f"python tools/check_cache.py {folder} RECIPE --rerun {options.rerun}"
        raise UserError("--rerun needs the recipe whose teachers are to run", fix=fix)
    data = Path(recipe.data.shards) if recipe is not None and shards is None else shards
    pictures = None if data is None else open_pictures(data)
    process = ProcessContext() if recipe is None else process_context(recipe.run.device, {})
    if recipe is not None:
        recipe = replace(recipe, body=_body(folder) or recipe.body)
    notes = _notes_on_teachers(folder, recipe, options)
    report = check_cache(folder, pictures, workers=options.workers)
    compared: list[Compared] = []
    if recipe is not None and pictures is not None and options.rerun is not None:
        report, compared = _rerun(report, recipe, pictures, options, process.device)
    done: list[str] = []
    if options.repair and report.problems:
        single = all(2 * target.num_wrong <= target.num_rows for target in compared)
        if not single:
            done = ["rows that differ were left alone: too many to be the fault of single shards"]
        with explain_os_errors("the repair cannot go on", folder):
            report, acts = repair(
                report, recipe, pictures, process, workers=options.workers, trust_rerun=single
            )
        done += acts
    with explain_os_errors("dead folders could not be removed", folder):
        removed = remove_dead(folder) if options.gc else []
    gone = {str(leftover) for leftover in removed}
    notes += [note for note in report.notes if note not in gone]
    return CheckResult(
        report=replace(report, notes=tuple(notes)),
        compared=tuple(compared),
        repaired=tuple(done),
        removed=tuple(removed),
        fix=_fix(folder) if any(p.kind != "pictures" for p in report.problems) else None,
    )


def _body(folder: Path) -> _Body | None:
    """The cache's body: it cannot change results, so nobody has to say it again."""
    cache = open_or_say(folder)
    if isinstance(cache, Cache):
        return cache.identity["body"]
    suffixes = {Path(name).suffix for name in stated(folder)}
    return next((name for name in get_args(_Body) if BODIES[name].suffix in suffixes), None)


def _notes_on_teachers(folder: Path, recipe: Recipe | None, options: CheckOptions) -> list[str]:
    """Refuse a recipe of other teachers; say so where only a part of them could be compared."""
    cache = open_or_say(folder)
    if recipe is None or isinstance(cache, Problem):
        return []
    try:
        refuse_other_teachers(cache, recipe)
    except MissingTeacherError as error:
        if options.rerun is not None or options.repair:
            raise
        refuse_other_teachers(cache, recipe, with_files=False)
        return [f"the teachers' files were not compared: {error.what}"]
    return []


def _rerun(
    report: Report, recipe: Recipe, pictures: PictureSet, options: CheckOptions, device: str
) -> tuple[Report, list[Compared]]:
    """Run the teachers again on rows of the shards that are sound; return the report with it."""
    assert options.rerun is not None
    folder_is_bad = any(p.kind in ("identity", "codecs") for p in report.problems)
    other_size = any(p.kind == "pictures" and p.shard is None for p in report.problems)
    if folder_is_bad or other_size:
        note = "no teacher was run again: see to the other problems first"
        return replace(report, notes=(*report.notes, note)), []
    cache = open_cache(report.cache)
    rows = draw(cache, _sound(cache, report), options.rerun, options.seed)
    notes = report.notes
    if len(rows) < options.rerun:
        notes = (*notes, f"the teachers were run again on {len(rows)} rows: no more are sound")
    compared, problems = rerun(cache, recipe, pictures, rows, device)
    return replace(report, notes=notes, problems=(*report.problems, *problems)), compared


def _sound(cache: Cache, report: Report) -> tuple[ShardId, ...]:
    """The published shards of which nothing bad is known."""
    bad = {problem.shard for problem in report.problems}
    missing = cache.missing()
    return tuple(id_ for id_ in cache.shard_ids() if id_ not in bad and id_ not in missing)


def _plain(problem: Problem) -> dict[str, Any]:
    return {
        "place": problem.kind,
        "shard": None if problem.shard is None else str(problem.shard),
        "path": str(problem.path),
        "what": problem.what,
    }


def _fix(folder: Path) -> str:
    return f"python tools/check_cache.py {folder} RECIPE --repair"
