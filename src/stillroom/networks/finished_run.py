"""The student of a finished run: what `student.json` says of it, and its weights, checked.

Both come from a folder that may be anybody's. The weights' sha256 is compared before they are used,
and a network is built only as large as the weights are.
"""

from pathlib import Path
from typing import Any, TypedDict

import torch

from stillroom.errors import DamageError, StillroomError, UserError
from stillroom.jsonfile import Sha256, file_sha256, read_json
from stillroom.networks.build import Network, build_network, load_weights
from stillroom.tensorfile import map_tensors

DESCRIPTION, WEIGHTS = "student.json", "student.safetensors"


class RunDescription(TypedDict):
    """What `student.json` holds at least; what else stands there is not kept."""

    network: dict[str, Any]  # what `build_network` takes
    weights_sha256: Sha256


def require_finished(
    run: Path, names: tuple[str, ...] = (WEIGHTS, DESCRIPTION), kind: type[UserError] = UserError
) -> None:
    """Raise a UserError (or that `kind` of it) for a folder that is not a finished run with these
    files, and say what it is instead.
    """
    missing = [name for name in names if not (run / name).is_file()]
    if not missing:
        return
    found = f"a folder without {' and '.join(missing)}" if run.is_dir() else "a file"
    wanted, fix = "runs/NAME, of stillroom train", "stillroom list shows the runs"
    if not run.exists():
        found, fix = "no such folder", f"train it, or name another; {fix}"
    elif (run / "recipe.json").is_file():
        found, wanted = "a run that has not come to its end", None
        has_best = all((run / "best" / name).is_file() for name in names)
        best = f", or take {run / 'best'}" * has_best
        fix = f"go on with it: the same stillroom train, with --run.resume{best}"
    raise kind(f"{run} is not a finished run", found=found, wanted=wanted, fix=fix)


def read_run(run: Path, kind: Any = RunDescription) -> Any:
    """Return `student.json`, having found that the weights beside it are those that it names.

    Raises FileNotFoundError, and DamageError where the files are not what a run of ours writes.
    """
    about, path = read_json(run / DESCRIPTION, kind), run / WEIGHTS
    found, wanted = file_sha256(path), about["weights_sha256"]
    if found != wanted:
        raise DamageError(f"{path} is not what student.json names", found=found, wanted=wanted)
    return about


def load_run(run: Path, kind: Any = RunDescription, code: str | None = None) -> tuple[Network, Any]:
    """Return a run's student with its weights, and `student.json`; errors as `read_run`.

    `code` names the function that builds a network of the user's own, path/to/file.py:function.
    """
    about, path = read_run(run, kind), run / WEIGHTS
    num_stored = sum(value.numel() for value in map_tensors(path).values())
    if (found := _num_parameters(about["network"])) > num_stored:
        raise DamageError(
            f"the network of {run / DESCRIPTION} has more parameters than its weights",
            found=found,
            wanted=f"at most {num_stored}",
        )
    network = build_network(about["network"], code)
    load_weights(network, path)
    return network, about


def _num_parameters(architecture: dict[str, Any]) -> int:
    """Count without memory; 0 where that cannot be (MiT computes while it is built)."""
    try:
        with torch.device("meta"):
            return sum(value.numel() for value in build_network(architecture).parameters())
    except (StillroomError, NotImplementedError, RuntimeError):
        return 0
