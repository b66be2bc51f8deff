"""A finished run's student: its network with its weights, checked, and what student.json says of
it.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import torch
from torch.utils.flop_counter import FlopCounterMode

from stillroom.errors import UserError
from stillroom.metrics import num_classes
from stillroom.networks.build import Network
from stillroom.networks.finished_run import DESCRIPTION, WEIGHTS, RunDescription, load_run
from stillroom.pictures.decode import MAX_SIDE_PX

_Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE_PX)]


class _Geometry(TypedDict):
    height: _Side
    width: _Side


class _Pictures(TypedDict):
    path: str


class StudentDescription(RunDescription):
    """What `student.json` holds, as far as using a student takes it."""

    classes: list[str]
    regions: NotRequired[tuple[_Side, _Side] | None]  # cells (y, x) of a region's mask
    geometry: _Geometry
    pictures: _Pictures
    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)]  # pictures of a forward pass
    score: NotRequired[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A student ready for use, in evaluation mode on the CPU."""

    run: Path
    network: Network
    about: StudentDescription

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels, that it was trained at."""
        return self.about["geometry"]["height"], self.about["geometry"]["width"]

    @property
    def regions(self) -> tuple[int, int] | None:
        """Cells (y, x) of a region's mask, where it looks at boxes."""
        return self.about.get("regions")

    @property
    def num_parameters(self) -> int:
        """Numbers that were trained."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def num_classes(self) -> int:
        """Classes that its logits tell apart."""
        return num_classes(self.about["network"].get("classes", 1))  # a BinaryUNet has one channel

    @property
    def weights_bytes(self) -> int:
        """Size of the weights' file."""
        return (self.run / WEIGHTS).stat().st_size


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
    network, about = load_run(run, StudentDescription, code)
    return Trained(run=run, network=network.eval(), about=about)


@torch.no_grad()  # in inference mode convolutions are not counted
def flops(trained: Trained) -> int:
    """Return the floating point operations of one picture, a multiplication and an addition being
    two: those of convolutions and matrix products, as torch counts them.
    """
    with FlopCounterMode(display=False) as counter:
        trained.network.cpu()(torch.zeros(1, 3, *trained.size), _whole_box(trained))
    return counter.get_total_flops()


@torch.inference_mode()
def milliseconds(trained: Trained, repeats: int = 30) -> float:
    """Return the median time of one picture (batch 1, fp32, CPU, torch's threads), after three
    rounds of warming up.
    """
    network, boxes = trained.network.cpu(), _whole_box(trained)
    image, times = torch.rand(1, 3, *trained.size), []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        network(image, boxes)
        times.append(time.perf_counter() - began)
    return 1000 * sorted(times[3:])[repeats // 2]


def _whole_box(trained: Trained) -> torch.Tensor:
    height, width = trained.size
    return torch.tensor([[0.0, 0.0, width, height]])
