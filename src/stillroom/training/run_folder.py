"""The run's folder: not touched without asking, resumed by its own recipe only, written by one run
at a time.
"""

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from stillroom.cache.identity import both_sides, differences
from stillroom.errors import UserError
from stillroom.jsonfile import read_json, write_json
from stillroom.recipe import Recipe, plain
from stillroom.training.context import TrainContext, run_folder

_LOCK = "lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # Lustre without -o flock


def require_free(recipe: Recipe) -> None:
    """Refuse to touch a run that exists unless asked to, and to resume another recipe's."""
    folder = run_folder(recipe)
    if recipe.run.resume:
        if not (folder / "recipe.json").is_file():
            raise UserError(f"there is no run {folder} to resume", fix="leave out --run.resume")
        _require_same(read_json(folder / "recipe.json"), _recorded(recipe), folder)
    elif _contents(folder) and not recipe.run.overwrite:
        raise UserError(
            f"the run {folder} exists", fix="--run.resume, --run.overwrite, or --run.name NAME"
        )


@contextmanager
def claim_run(context: TrainContext) -> Iterator[None]:
    """Make the run's folder; within, no other run writes there. Rank 0 does, the others wait."""
    context.any(False)  # every rank has found the folder free
    with ExitStack() as stack:
        if context.is_first:
            context.folder.mkdir(parents=True, exist_ok=True)
            _lock(stack.enter_context((context.folder / _LOCK).open("w")), context.folder)
            require_free(context.recipe)  # another may have begun meanwhile
            if not context.recipe.run.resume:
                _start(context.folder, context.recipe)
        context.any(False)
        yield


def _lock(file: IO[str], folder: Path) -> None:
    """Lock a file for as long as it is open, at most for this process's life."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another process is training the run {folder}",
            fix="wait for it, stop it, or give this run another name with --run.name",
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"warning: {folder} cannot be locked: start no other run of this name", flush=True)


def _start(folder: Path, recipe: Recipe) -> None:
    for old in _contents(folder):
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    for name in ("checkpoints", "pictures"):
        (folder / name).mkdir()
    write_json(folder / "recipe.json", _recorded(recipe))


def _contents(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != _LOCK] if folder.exists() else []


def _recorded(recipe: Recipe) -> dict[str, Any]:
    """Return what recipe.json holds: every field that can change results (a body cannot)."""
    fields = plain(recipe).items()
    return {"recipe": {name: value for name, value in fields if name not in ("run", "body")}}


def _require_same(stored: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    """Refuse to resume with a recipe whose results would differ; both sides are shown."""
    if different := differences(asked["recipe"], stored.get("recipe")):
        found, wanted = both_sides(different)
        raise UserError(
            f"{folder} was started with another recipe",
            found=found,
            wanted=wanted,
            fix="resume with the run's own flags, or start another with --run.name",
        )
