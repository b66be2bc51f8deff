"""Runs the project's own commands as a user would, and measures time and memory of each."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        began = time.perf_counter()
        child = subprocess.Popen(
            words(script, *arguments),
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        _, code, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(code)
        file.seek(0)
        outputs = file.read().replace("\r", "\n")
    if child.returncode != status:
        raise RuntimeError(f"{script} ended with status {child.returncode}:\n{outputs}")
    return Finished(seconds=seconds, peak_mb=usage.ru_maxrss * 1024 / 1e6, outputs=outputs)
