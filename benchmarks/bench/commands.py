"""Runs the project's own commands as a user would, and measures time and memory of each."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.01
_SHOWN = 2000  # last characters of a command that had to be ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A command that has ended: wall time, largest resident memory, all that it printed."""

    seconds: float
    peak_mb: float
    outputs: str

    def lines(self, start: str) -> list[str]:
        """Return the lines that begin so."""
        return [line for line in self.outputs.splitlines() if line.startswith(start)]


def words(script: str, *arguments: object) -> list[str]:
    """Return the command line of one of the project's scripts."""
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def call(
    script: str,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    status: int = 0,
) -> Finished:
    """Run a script to its end; raises RuntimeError, with what it said, at another exit status."""
    (done,) = _call_all(words(script, *arguments), [environment or {}], status)
    return done


def train_once(run: Path, *arguments: object) -> None:
    """Train the run of that folder unless it is finished; what was begun and saved goes on."""
    if (run / "receipt.json").is_file():
        return
    begun = any(run.glob("checkpoints/step-*"))
    place = ("--run.out", run.parent, "--run.name", run.name)
    call("train_student.py", *arguments, *place, "--run.resume" if begun else "--run.overwrite")


def call_ranks(
    script: str, *arguments: object, environments: Sequence[Mapping[str, str]]
) -> list[Finished]:
    """Run a script in one process an environment, which are ranks of each other, as torchrun would.

    Raises RuntimeError, with what it said, for a rank whose exit status is not 0; the others are
    ended then.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    world = {**place, "WORLD_SIZE": str(len(environments))}
    ranks = [{**world, "RANK": str(r), **env} for r, env in enumerate(environments)]
    return _call_all(words(script, *arguments), ranks, 0)


def _call_all(
    command: list[str], environments: Sequence[Mapping[str, str]], status: int
) -> list[Finished]:
    done: dict[int, Finished] = {}
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        running = [_start(command, env, Path(name) / str(i)) for i, env in enumerate(environments)]
        order = [child.pid for child, _ in running]
        try:
            while running:
                for child, path in list(running):
                    pid, code, usage = os.wait4(child.pid, os.WNOHANG)
                    if pid:
                        running.remove((child, path))
                        child.returncode = os.waitstatus_to_exitcode(code)
                        outputs = path.read_text(encoding="utf-8", errors="replace")
                        done[pid] = Finished(
                            seconds=time.perf_counter() - began,
                            peak_mb=usage.ru_maxrss * 1024 / 1e6,
                            outputs=outputs.replace("\r", "\n"),
                        )
                        _require(child, status, done[pid].outputs)
                time.sleep(_POLL_S)
        finally:
            for child, path in running:
                child.kill()
                child.wait()
                said = path.read_text(encoding="utf-8", errors="replace")[-_SHOWN:]
                print(f"{Path(command[1]).name} was ended; it had said:\n{said}", flush=True)
    return [done[pid] for pid in order]


def _start(
    command: list[str], environment: Mapping[str, str], outputs: Path
) -> tuple[subprocess.Popen, Path]:
    with outputs.open("w", encoding="utf-8") as file:
        env = {**os.environ, **environment}
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env), outputs


def _require(child: subprocess.Popen, status: int, outputs: str) -> None:
    if child.returncode != status:
        script = Path(list(child.args)[1]).name  # type: ignore[arg-type]
        raise RuntimeError(f"{script} ended with status {child.returncode}:\n{outputs}")
