"""A finished run's student: its network with its weights, checked, and what student.json says of
it.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillroom.errors import DamageError, UserError
from stillroom.networks.build import Network
from stillroom.networks.finished_run import DESCRIPTION, WEIGHTS, load_run
from stillroom.pictures.decode import MAX_SIDE_PX

_MAX_BATCH = 4096  # pictures of a forward pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A student ready for use, in evaluation mode on the CPU."""

    run: Path
    network: Network
    about: dict[str, Any]  # student.json

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels, that it was trained at."""
        return self.about["geometry"]["height"], self.about["geometry"]["width"]

    @property
    def num_parameters(self) -> int:
        """Numbers that were trained."""
        return sum(parameter.numel() for parameter in self.network.parameters())


def load_student(run: Path, code: str | None = None) -> Trained:
    """Load the student of a finished run (or of its `best/`); `code` as in `load_run`.

    Raises UserError where the run is not finished, DamageError where the weights are not those of
    student.json.
    """
    if not ((run / WEIGHTS).is_file() and (run / DESCRIPTION).is_file()):
        raise UserError(
            f"{run} is not a finished run",
            found=f"no {WEIGHTS} with {DESCRIPTION}",
            fix=f"finish it with --run.resume, or use {run / 'best'}",
        )
    network, about = load_run(run, code)
    _check(about, run)
    return Trained(run=run, network=network.eval(), about=about)


def _check(about: dict[str, Any], run: Path) -> None:
    """Raise DamageError where student.json does not say what using a student takes."""
    try:
        classes, sides = about["classes"], about["geometry"]
        numbers = [(about["batch"], _MAX_BATCH)]
        numbers += [(sides[name], MAX_SIDE_PX) for name in ("height", "width")]
        is_good = (
            isinstance(classes, list)
            and all(isinstance(name, str) for name in classes)
            and all(type(number) is int and 1 <= number <= most for number, most in numbers)
            and isinstance(about["pictures"]["path"], str)
        )
    except (KeyError, TypeError) as error:
        raise DamageError(f"{run / DESCRIPTION} is malformed", found=repr(error)) from None
    if not is_good:
        raise DamageError(f"{run / DESCRIPTION} is malformed", found=f"{about!r:.200}")


@torch.inference_mode()
def milliseconds(trained: Trained, repeats: int = 30) -> float:
    """Return the median time of one picture (batch 1, fp32, CPU, torch's threads), after three
    rounds of warming up.
    """
    image = torch.rand(1, 3, *trained.size)
    times = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        trained.network(image)
        times.append(time.perf_counter() - began)
    return 1000 * sorted(times[3:])[repeats // 2]
