"""A finished run's student: its network with its weights, checked, and what student.json says of
it.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import file_sha256, read_json
from stillroom.networks.build import Network, build_network, load_weights


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


def load_student(run: Path) -> Trained:
    """Load the student of a finished run (or of its `best/`).

    Raises UserError where the run is not finished, DamageError where the weights are not those of
    student.json.
    """
    weights = run / "student.safetensors"
    if not weights.is_file() or not (run / "student.json").is_file():
        raise UserError(
            f"{run} is not a finished run",
            found="no student.safetensors with student.json",
            fix=f"finish it with --run.resume, or use {run / 'best'}",
        )
    about = read_json(run / "student.json")
    found = file_sha256(weights)
    if found != about.get("weights_sha256"):
        raise DamageError(
            f"{weights} is not what student.json names",
            found=found,
            wanted=about.get("weights_sha256"),
        )
    network = build_network(about["network"])
    load_weights(network, weights)
    return Trained(run=run, network=network.eval(), about=about)


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
