"""Jobs run as subprocesses of ours, one after another or one per GPU; what fails is recorded, what
depends on it is skipped, everything else goes on.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.errors import StillroomError, Stopped
from stillroom.experiments.jobs import Job

# of a job: `state` (running, then done, failed, skipped or stopped), and where it is known
# `reason`, `seconds`, `log`
Record = dict[str, Any]
_WAIT_S = 0.1
_TAIL_BYTES = 20_000  # of a log, in which its error is looked for


class Process(subprocess.Popen):
    """A command of ours, in a session of its own: Ctrl-C in a terminal reaches it through us only,
    as the signal on which it saves.
    """

    def __init__(self, command: Sequence[str], log: Path, place: Mapping[str, str]) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ python {' '.join(command)}\n")
            file.flush()
            self._begin = file.tell()
            super().__init__(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **place},
                start_new_session=True,
            )

    def reason(self) -> str:
        """Return the error's paragraph, or the status and the last lines where there is none."""
        with self.log.open("rb") as file:
            file.seek(max(self._begin, self.log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
        if paragraphs := re.findall(r"^stillroom: (.*(?:\n  .*)*)", text, re.M):
            return paragraphs[-1]
        lines = [line for line in text.splitlines() if line.strip()]
        return "\n  ".join([f"ended with status {self.poll()}", *lines[-5:]])


def find_places(device: str) -> list[dict[str, str]]:
    """Return what is added to the environment of each job that runs at once: one per GPU, or one in
    all.
    """
    import torch

    count = torch.cuda.device_count() if device != "cpu" else 0
    if count < 2:
        return [{}]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",")[:count] if named else [f"{number}" for number in range(count)]
    threads = os.environ.get("OMP_NUM_THREADS", f"{max(1, (os.cpu_count() or 1) // count)}")
    return [{"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": threads} for gpu in gpus]


def run_jobs(
    jobs: Sequence[Job],
    places: Sequence[Mapping[str, str]],
    start: Callable[[Job, Mapping[str, str]], Process],
    stop: threading.Event,
    tell: Callable[[str, Record], None],
) -> dict[str, Record]:
    """Run what is not done, in order and in all places at once; return how each job ended.

    `tell` hears of each beginning and each ending. Once `stop` is set nothing more begins, what
    runs is asked to save and end, and what has not begun has no record.
    """
    runner = _Runner(places, start, tell)
    waiting, was_asked = list(jobs), False
    try:
        while runner.running or (waiting and not stop.is_set()):
            if stop.is_set():
                if not was_asked:
                    runner.ask_to_end()
                was_asked = True
            else:
                runner.begin(waiting)
            runner.collect(stop.is_set())
            if runner.running:
                time.sleep(_WAIT_S)
    finally:
        runner.ask_to_end()  # those that run, where this is left by an error
    return runner.records


class _Runner:
    """What runs where, and how jobs ended."""

    def __init__(
        self,
        places: Sequence[Mapping[str, str]],
        start: Callable[[Job, Mapping[str, str]], Process],
        tell: Callable[[str, Record], None],
    ) -> None:
        self.records: dict[str, Record] = {}
        self.running: dict[int, tuple[Job, Process, float]] = {}
        self._places, self._start, self._tell = places, start, tell

    def begin(self, waiting: list[Job]) -> None:
        """Begin, or settle without, those waiting that can be, as long as a place is free."""
        for job in [job for job in waiting if all(need in self.records for need in job.needs)]:
            free = [number for number in range(len(self._places)) if number not in self.running]
            if not free:
                return
            waiting.remove(job)
            if record := self._without_running(job):
                self._end(job, record)
                continue
            child = self._start(job, self._places[free[0]])
            self.running[free[0]] = job, child, time.monotonic()
            self._tell(job.name, {"state": "running", "log": str(child.log)})

    def _without_running(self, job: Job) -> Record | None:
        for need in job.needs:
            if (state := self.records[need]["state"]) != "done":
                return {"state": "skipped", "reason": f"needs {need} ({state})"}
        try:
            return {"state": "done"} if job.is_done() else None
        except StillroomError as error:
            return {"state": "failed", "reason": str(error)}

    def collect(self, stopping: bool) -> None:
        """Record those that have ended."""
        for number, (job, child, began) in list(self.running.items()):
            status = child.poll()
            if status is None:
                continue
            del self.running[number]
            record: Record = {"state": "done", "seconds": round(time.monotonic() - began, 1)}
            if status:
                was_stopped = status == Stopped.exit_code or (stopping and status < 0)
                record |= {"state": "stopped" if was_stopped else "failed"}
                record |= {"reason": child.reason()}
            self._end(job, {**record, "log": str(child.log)})

    def _end(self, job: Job, record: Record) -> None:
        self.records[job.name] = record
        self._tell(job.name, record)

    def ask_to_end(self) -> None:
        """Tell all that run to save and end."""
        for _, child, _ in self.running.values():
            child.terminate()
