"""Which of how many processes this is, and on which device: alone, under torchrun or accelerate
launch, or in a Slurm array.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from stillroom.errors import Stopped, UserError
from stillroom.pictures.loader import num_cores

_ARRAY = (("MIN", "0"), ("STEP", "1"))  # of a Slurm array, with what is taken where it is not given


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessContext:
    """Which of the processes that share the work this is, and its device."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """True for the process that talks."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """The device as provenance names it."""
        return torch.cuda.get_device_name(self.device) if self.device != "cpu" else "cpu"

    def print(self, text: str) -> None:
        """Print a line from the first process only."""
        if self.is_first:
            print(text, flush=True)


def process_context(wanted: str, environment: Mapping[str, str] | None = None) -> ProcessContext:
    """Return what the environment says of this process; `wanted` is auto, cpu or cuda.

    Raises UserError where CUDA is asked for and there is none.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env:
        rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
    elif "SLURM_ARRAY_TASK_ID" in env:
        world = int(env["SLURM_ARRAY_TASK_COUNT"])
        first, step = (int(env.get(f"SLURM_ARRAY_TASK_{n}", d)) for n, d in _ARRAY)
        # An array like 1,5,6 has no even steps; two tasks of one rank repeat work and no more.
        rank = (int(env["SLURM_ARRAY_TASK_ID"]) - first) // step % world
    else:
        rank, world = 0, 1
    return ProcessContext(
        rank=rank, world=world, device=_device(wanted, int(env.get("LOCAL_RANK", "0")))
    )


def _device(wanted: str, local_rank: int) -> str:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError("CUDA was asked for", found="no CUDA device", fix="--run.device cpu")
    return f"cuda:{local_rank % torch.cuda.device_count()}"


def spread_over_gpus(wanted: str) -> int | None:
    """Where this process was started alone and sees several GPUs, run itself once per GPU and wait.

    Returns None when there is nothing to spread, otherwise the worst exit status.
    """
    alone = "RANK" not in os.environ and "SLURM_ARRAY_TASK_ID" not in os.environ
    count = torch.cuda.device_count() if wanted != "cpu" and alone else 1
    if count < 2:
        return None
    children: list[subprocess.Popen] = []
    # Ctrl-C reaches those in the same terminal by itself, and kill -INT only this process.
    sent: dict[int, int] = {n: n for n in (signal.SIGTERM, signal.SIGUSR1)}
    sent[signal.SIGINT] = signal.SIGTERM
    before = [signal.signal(n, lambda n, _: _send(children, sent[n])) for n in sent]
    try:
        for rank in range(count):
            # The words as they were given: `run_command` has taken --debug from sys.argv.
            words = [sys.executable, *sys.orig_argv[1:]]
            children.append(subprocess.Popen(words, env=_environment(rank, count)))
        statuses = [_status(child.wait()) for child in children]
        failed = [status for status in statuses if status not in (0, Stopped.exit_code)]
        return max(failed or statuses)
    finally:
        _send(
            children, signal.SIGTERM
        )  # reaches none that has ended; on Ctrl-C those that have not
        for child in children:
            child.wait()
        for number, handler in zip(sent, before, strict=True):
            signal.signal(number, handler)


def _environment(rank: int, world: int) -> dict[str, str]:
    """Return the environment of one of the processes of this machine: torch and onnxruntime would
    take every core in each of them, so each is given its share, unless the user said how many.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, num_cores() // world))}
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    place = {name: str(number) for name, number in place.items()}
    return {**threads, **os.environ, **place}


def _send(children: list[subprocess.Popen], number: int) -> None:
    for child in children:
        child.send_signal(number)


def _status(code: int) -> int:
    """Return what a shell would say of a child: 128 and the signal's number for a killed one."""
    return code if code >= 0 else 128 - code
