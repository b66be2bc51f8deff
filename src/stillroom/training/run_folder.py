"""The run's folder: not touched without asking, resumed by its own recipe only (which may get
more epochs), written by one run at a time.
"""

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TypedDict

from stillroom.cache.identity import both_sides, differences
from stillroom.errors import UserError
from stillroom.jsonfile import Count, read_json, write_json
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
        _require_same(_stored(folder), recipe, folder)
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
                _start(context)
            elif _stored(context.folder)["recipe"]["epochs"] != context.recipe.epochs:
                write_json(context.folder / "recipe.json", _recorded(context.recipe, context.begin))
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


def added_epochs(recipe: Recipe) -> int:
    """Return how many epochs `--run.additional-epochs` makes of a run that is there: so many more
    than it has, where it is finished; those that it has, where it is not, so that a command that is
    given again adds nothing twice.
    """
    folder = run_folder(recipe)
    epochs = _stored(folder)["recipe"]["epochs"]
    if is_finished(folder, epochs):
        return epochs + recipe.run.additional_epochs
    print(f"{folder} is not finished: it goes on to its {epochs} epochs, and none is added")
    return epochs


def is_finished(folder: Path, epochs: int) -> bool:
    """Return whether a run of so many epochs has come to its end."""
    path = folder / "receipt.json"
    return path.is_file() and read_json(path).get("epochs") == epochs


def stored_begin(folder: Path) -> dict[str, str] | None:
    """Return the run that a run's student began from, and the sha256 of its weights."""
    return _stored(folder).get("begin")


class _Epochs(TypedDict):
    epochs: Count


class _Stored(TypedDict):
    recipe: _Epochs


def _stored(folder: Path) -> dict[str, Any]:
    """Return what recipe.json holds, once it is known to hold a number of epochs."""
    read_json(folder / "recipe.json", _Stored)
    return read_json(folder / "recipe.json")


def _start(context: TrainContext) -> None:
    folder = context.folder
    for old in _contents(folder):
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    for name in ("checkpoints", "pictures"):
        (folder / name).mkdir()
    write_json(folder / "recipe.json", _recorded(context.recipe, context.begin))


def _contents(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != _LOCK] if folder.exists() else []


def _recorded(recipe: Recipe, begin: dict[str, str] | None) -> dict[str, Any]:
    """Return what recipe.json holds: every field that can change results (a body cannot), and what
    the student began from.
    """
    fields = plain(recipe).items()
    values = {name: value for name, value in fields if name not in ("run", "body")}
    if recipe.follows_scores:
        values["evaluate_every"] = recipe.run.evaluate_every
    return {"recipe": values, "begin": begin}


def _require_same(stored: dict[str, Any], recipe: Recipe, folder: Path) -> None:
    """Refuse to resume with a recipe whose results would differ; both sides are shown. Epochs are
    added by `--run.additional-epochs` alone: a forgotten `--epochs` shall not prolong a run.
    """
    asked, epochs = _recorded(recipe, None)["recipe"], stored["recipe"]["epochs"]
    if recipe.run.additional_epochs:
        asked["epochs"] = epochs
    if different := differences(asked, stored["recipe"]):
        found, wanted = both_sides(different)
        raise UserError(
            f"{folder} was started with another recipe",
            found=found,
            wanted=wanted,
            fix="resume with the run's own flags (more epochs: --run.additional-epochs N), or start"
            " another with --run.name",
        )
