"""What `stillroom check-cache` does, in order: check, run again, repair, audit, collect garbage."""

from dataclasses import dataclass, replace
from pathlib import Path

from stillroom.cache.folder import Cache, open_cache
from stillroom.checking.audit import run_audit
from stillroom.checking.check import check_cache, find_folder, open_or_problem
from stillroom.checking.check_result import CheckResult
from stillroom.checking.leftovers import find_dead, num_bytes, remove_dead
from stillroom.checking.repair import repair
from stillroom.checking.rerun import draw, refuse_other_teachers, rerun
from stillroom.errors import UserError
from stillroom.extraction.process import ProcessContext, process_context
from stillroom.os_errors import explain_os_errors
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.recipe import Recipe
from stillroom.teachers.configs import MissingTeacherError


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """What the user asked for beside the check."""

    rerun: int | None = None  # rows to run the teachers again on; None = none
    seed: int = 0  # of the draw of these rows
    audit: int | None = None  # rows to compare transformed answers on; None = none
    repair: bool = False
    gc: bool = False
    workers: int = 2  # threads that read

    def __post_init__(self) -> None:
        for flag, rows in (("--rerun", self.rerun), ("--audit", self.audit)):
            if rows is not None and rows < 1:
                raise UserError("no such number of rows", found=f"{flag} {rows}", wanted=">= 1")
        if self.workers < 1:
            raise UserError("no such number of threads", found=f"--workers {self.workers}")


def run_check(
    path: Path, recipe: Recipe | None, shards: Path | None, options: CheckOptions
) -> CheckResult:
    """Check the cache that `path` names, and do what else is asked for.

    `shards` are picture shards to compare with; those of the recipe where absent. Raises UserError
    for what cannot be done as asked, before anything is written.
    """
    folder = find_folder(path)
    for flag, rows in (("--rerun", options.rerun), ("--audit", options.audit)):
        if recipe is None and rows is not None:
            fix = f"stillroom check-cache {folder} RECIPE {flag} {rows}"
            raise UserError(f"{flag} needs the recipe whose teachers are to run", fix=fix)
    data = recipe.run.place(recipe.data.shards) if recipe is not None and shards is None else shards
    pictures = None if data is None else open_pictures(data)
    process = ProcessContext() if recipe is None else process_context(recipe.run.device, {})
    cache, notes = open_or_problem(folder), []
    if recipe is not None and isinstance(cache, Cache):
        recipe = replace(recipe, body=cache.identity["body"])  # it cannot change results
        notes = _notes_on_teachers(cache, recipe, options)
    rows_of = None if recipe is None else recipe.rows_of
    result = check_cache(folder, pictures, rows_of, workers=options.workers)
    if recipe is not None and pictures is not None and options.rerun is not None:
        result = _rerun(result, recipe, pictures, options, process.device)
    if options.repair and result.problems:
        with explain_os_errors("the repair cannot go on", folder):
            result = repair(result, recipe, pictures, process, workers=options.workers)
    if recipe is not None and pictures is not None and options.audit is not None:
        with explain_os_errors("the audit cannot be kept", folder):
            result = _audit(result, recipe, pictures, options, process.device)
    with explain_os_errors("dead folders could not be removed", folder):
        removed: list[Path | str] = [*remove_dead(folder)] if options.gc else []
        if options.gc and isinstance(cache, Cache):
            removed += cache.shards.remove_garbage()
    notes += [*result.notes, *_notes(folder, pictures)]
    return replace(result, notes=tuple(notes), removed=tuple(removed))


def _notes_on_teachers(cache: Cache, recipe: Recipe, options: CheckOptions) -> list[str]:
    """Refuse a recipe of other teachers; say so where only a part of them could be compared."""
    try:
        refuse_other_teachers(cache, recipe)
    except MissingTeacherError as error:
        if options.rerun is not None or options.audit is not None or options.repair:
            raise
        refuse_other_teachers(cache, recipe, with_files=False)
        return [f"the teachers' files were not compared: {error.what}"]
    return []


def _notes(folder: Path, pictures: PictureSet | None) -> list[str]:
    """What is worth saying and not wrong."""
    notes = [f"{path} was left by a dead writer; --gc removes it" for path in find_dead(folder)]
    if size := num_bytes(folder / "quarantine"):
        notes.append(
            f"{folder / 'quarantine'} holds {size / 1e6:.1f} MB;"
            " delete it when nobody wants to look into it"
        )
    if pictures is None:
        notes.append("not compared with picture shards: give a RECIPE or --shards FOLDER")
    return notes


def _rerun(
    result: CheckResult, recipe: Recipe, pictures: PictureSet, options: CheckOptions, device: str
) -> CheckResult:
    """Run the teachers again on rows of the shards that are sound; return the result with it."""
    assert options.rerun is not None
    if _is_doubtful(result):
        return replace(result, notes=("no teacher was run again: see to the problems first",))
    cache = open_cache(result.cache)
    bad = {*cache.missing(), *(problem.shard for problem in result.problems)}
    sound = [shard_id for shard_id in cache.shard_ids() if shard_id not in bad]
    rows, notes = draw(cache, sound, options.rerun, options.seed), ()
    if len(rows) < options.rerun:
        notes = (f"the teachers were run again on {len(rows)} rows: no more are sound",)
    compared, problems = rerun(cache, recipe, pictures, rows, device)
    problems = (*result.problems, *problems)
    return replace(result, notes=notes, compared=tuple(compared), problems=problems)


def _audit(
    result: CheckResult, recipe: Recipe, pictures: PictureSet, options: CheckOptions, device: str
) -> CheckResult:
    """Compare the teachers' answers for transformed pictures; return the result with it."""
    assert options.audit is not None
    if _is_doubtful(result):
        notes = (*result.notes, "no audit was made: see to the problems first")
        return replace(result, notes=notes)
    cache = open_cache(result.cache)
    rows = draw(cache, cache.shard_ids(), options.audit, options.seed, first_only=True)
    audit = run_audit(cache, recipe, pictures, rows, device)
    left = [name for name in cache.specs if name not in audit.targets]
    notes = (f"{name} is not audited: its teacher looks at no pixels" for name in left)
    return replace(result, audit=audit, notes=(*result.notes, *notes))


def _is_doubtful(result: CheckResult) -> bool:
    """Whether it is open what was made of which pictures."""
    kinds = ("identity", "codecs", "pictures")
    return any(p.shard is None and p.kind in kinds for p in result.problems)
