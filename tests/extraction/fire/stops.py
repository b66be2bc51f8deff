"""Stage 1 that is told to stop, or whose neighbours die."""

import os
import signal
import time
from dataclasses import replace
from typing import Any

from attempts import World
from bench import forked
from bench.forked import fork, wait

import stillroom.cache.writer as writer
import stillroom.extraction.extract as extract
from stillroom.extraction.process import ProcessContext, process_context

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
MIDDLE = (extract, "run_teachers", 3)
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "while the cache is claimed": (extract, "compose", 1),
    "in the gate": (extract, "gate_pictures", 1),
    "while it answers in the gate": (forked._Built, "__call__", 2),
    "in mid-shard": MIDDLE,
    "while publishing": (writer, "scrub_folder", 2),
    "while publishing the last": (writer, "scrub_folder", 3),
}


def signals(world: World, many: bool) -> dict[str, Any]:
    """Either signal, while something is under way."""
    outcomes = {}
    for number in SIGNALS:
        moments = MOMENTS if many or number == signal.SIGTERM else {"in mid-shard": MIDDLE}
        for where, moment in moments.items():
            attempt = world.attempt()
            attempt.recipe = replace(attempt.recipe, gate="warn", batch=1, micro_batch=1)
            status = attempt.run(lambda m=moment, n=number: _send_at(*m, n))
            outcomes[f"{number.name} {where}"] = attempt.outcome(status)
    return outcomes


def _send_at(module: Any, name: str, visit: int, number: int) -> None:
    """Send this process a signal at a visit of a function, before the function does anything."""
    function, visits = getattr(module, name), []

    def visited(*words: Any) -> Any:
        visits.append(1)
        if len(visits) == visit:
            os.kill(os.getpid(), number)
        return function(*words)

    setattr(module, name, visited)


def any_moment(world: World, many: bool) -> dict[str, Any]:
    """Either signal from outside, at moments spread over a whole run."""
    whole = world.attempt()
    child = whole.start()
    _until(lambda: bool(whole.log.read_text()))
    began = time.perf_counter()
    assert wait(child) == 0
    seconds, moments, outcomes = time.perf_counter() - began, 20 if many else 4, {}
    for i in range(moments):
        attempt = world.attempt()
        child = attempt.start()
        _until(lambda a=attempt: bool(a.log.read_text()))  # its handlers are in place
        time.sleep(seconds * i / moments)
        os.kill(child, SIGNALS[i % 2])
        outcomes[str(i)] = attempt.outcome(wait(child))
    return outcomes


def array(world: World, many: bool) -> dict[str, Any]:
    """Three tasks of a Slurm array; each in turn dies in its first shard."""
    outcomes = {}
    for dead in range(3) if many else (1,):
        attempt, children = world.attempt(), []
        for task in range(3):
            place = _task(task)
            fault = {"STILLROOM_FAULT": "row-appended"} if task == dead else {}
            children.append(attempt.start(lambda f=fault: os.environ.update(f), place))
        statuses = [wait(child) for child in children]
        complete = attempt.cache.is_complete
        died = statuses.pop(dead)
        outcomes[str(dead)] = attempt.outcome(max(statuses), died=died, complete=complete)
    return outcomes


def _task(number: int) -> ProcessContext:
    names = {"ID": number + 1, "COUNT": 3, "MIN": 1, "MAX": 3}
    return process_context("cpu", {f"SLURM_ARRAY_TASK_{name}": str(n) for name, n in names.items()})


def parent(world: World, many: bool) -> dict[str, Any]:
    """A launcher of two processes is killed while both are in their first shard."""
    attempt = world.attempt()
    children = attempt.root.with_suffix(".children")

    def launch() -> None:
        places = [ProcessContext(rank=rank, world=2) for rank in range(2)]
        started = [attempt.start(_slow, place) for place in places]
        children.write_text(" ".join(map(str, started)))
        for child in started:
            wait(child)

    launcher = fork(launch, attempt.log)
    _until(lambda: len(list(attempt.root.glob("*/tmp/train*"))) == 2)
    os.kill(launcher, signal.SIGKILL)
    died = wait(launcher)
    _until(lambda: not any(map(_is_alive, map(int, children.read_text().split()))))
    complete = attempt.cache.is_complete
    return {"parent": attempt.outcome(0, died=died, complete=complete)}


def _slow() -> None:
    """Make every answer take 0.1 s, so that it lasts longer than its parent."""
    answer = extract.run_teachers

    def slowly(*words: Any) -> Any:
        time.sleep(0.1)
        return answer(*words)

    extract.run_teachers = slowly


def _is_alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def _until(happened: Any, patience_s: float = 60) -> None:
    until = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.001)
