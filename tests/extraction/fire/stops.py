"""Stage 1 that is told to stop, or whose neighbours die."""

import os
import signal
import time
from dataclasses import replace
from functools import partial
from typing import Any

import forked
from attempts import World
from file_system import send_at_event
from forked import fork, wait, wait_at

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

    def visited(*words: Any, **more: Any) -> Any:
        visits.append(1)
        if len(visits) == visit:
            os.kill(os.getpid(), number)
        return function(*words, **more)

    setattr(module, name, visited)


def any_moment(world: World, many: bool) -> dict[str, Any]:
    """Either signal at events of the file system that are spread over a whole run."""
    count, moments, outcomes = len(world.events()), 20 if many else 4, {}
    for i in range(moments):
        attempt, n, number = world.attempt(), i * count // moments, SIGNALS[i % 2]
        status = attempt.run(lambda a=attempt, n=n, s=number: send_at_event(a.root, n, s))
        outcomes[str(i)] = attempt.outcome(status)
    return outcomes


def array(world: World, many: bool) -> dict[str, Any]:
    """Three tasks of a Slurm array; each in turn dies in its first shard, the others in theirs."""
    outcomes = {}
    for dead in range(3) if many else (1,):
        attempt, children, gate = world.attempt(), [], os.pipe()
        for task in range(3):
            fault = {"STILLROOM_FAULT": "row-appended"}
            before = partial(wait_at, "folder-made", gate)
            before = partial(os.environ.update, fault) if task == dead else before
            children.append(attempt.start(before, _task(task)))
        died = wait(children.pop(dead))
        os.close(gate[1])  # and the others go on
        statuses = [wait(child) for child in children]
        os.close(gate[0])
        complete = attempt.cache.is_complete
        outcomes[str(dead)] = attempt.outcome(max(statuses), died=died, complete=complete)
    return outcomes


def _task(number: int) -> ProcessContext:
    names = {"ID": number + 1, "COUNT": 3, "MIN": 1, "MAX": 3}
    return process_context("cpu", {f"SLURM_ARRAY_TASK_{name}": str(n) for name, n in names.items()})


def parent(world: World, many: bool) -> dict[str, Any]:
    """A launcher of two processes is killed while both are in their first shard."""
    attempt, gate, ended = world.attempt(), os.pipe(), os.pipe()
    before = partial(wait_at, "folder-made", gate)

    def launch() -> None:
        places = [ProcessContext(rank=rank, world=2) for rank in range(2)]
        for child in [attempt.start(before, place) for place in places]:
            wait(child)

    launcher = fork(launch, attempt.log)
    while len(list(attempt.root.glob("*/tmp/train*"))) < 2:
        time.sleep(0.001)
    os.kill(launcher, signal.SIGKILL)
    died = wait(launcher)
    os.close(gate[1])  # and the children go on
    os.close(ended[1])
    assert os.read(ended[0], 1) == b""  # no process is left that holds the other end
    os.close(gate[0])
    os.close(ended[0])
    complete = attempt.cache.is_complete
    return {"parent": attempt.outcome(0, died=died, complete=complete)}
