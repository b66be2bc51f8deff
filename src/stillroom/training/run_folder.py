"""The run's folder: not touched without asking, and resumed by its own recipe only."""

import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from stillroom.errors import UserError
from stillroom.jsonfile import read_json, write_json
from stillroom.recipe import Recipe, plain


def require_free(recipe: Recipe) -> None:
    """Refuse to touch a run that exists unless asked to, and to resume another recipe's."""
    folder = Path(recipe.run.out) / recipe.run_name
    if recipe.run.resume:
        if not (folder / "recipe.json").is_file():
            raise UserError(f"there is no run {folder} to resume", fix="leave out --run.resume")
        _require_same(read_json(folder / "recipe.json"), _recorded(recipe), folder)
    elif folder.exists() and not recipe.run.overwrite:
        raise UserError(
            f"the run {folder} exists", fix="--run.resume, --run.overwrite, or --run.name NAME"
        )


def _recorded(recipe: Recipe) -> dict[str, Any]:
    """Return what recipe.json holds: every field that can change results (a body cannot)."""
    fields = plain(recipe).items()
    return {"recipe": {name: value for name, value in fields if name not in ("run", "body")}}


def make_run_folder(recipe: Recipe, accelerator: Accelerator) -> Path:
    """Make the run's folder; rank 0 does, the others wait."""
    folder = Path(recipe.run.out) / recipe.run_name
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not recipe.run.resume:
        if folder.exists():
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "pictures").mkdir()
        write_json(folder / "recipe.json", _recorded(recipe))
    accelerator.wait_for_everyone()
    return folder


def _require_same(stored: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    """Refuse to resume with a recipe whose results would differ; both sides of the first difference
    are shown.
    """
    old, new = _flat(stored.get("recipe")), _flat(asked["recipe"])
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise UserError(
                f"{folder} was started with another recipe: {name} differs",
                found=new.get(name),
                wanted=old.get(name),
                fix="resume with the run's own flags, or start another with --run.name",
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found: dict[str, Any] = {}
        for name, item in items:
            found |= _flat(item, f"{prefix}.{name}" if prefix else str(name))
        return found
    return {prefix: value}
