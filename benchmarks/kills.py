"""At least 200 `kill -9` while shards are made cost at most a shard each, and nothing else.

`python benchmarks/kills.py [--kills 200] [--seed 0]` packs 56 + 8 pictures in eight shards of eight
and caches them once without interruption, for each body; the teacher is a little numpy. Then caches
are begun by one to four processes, forked from this one, and each process is killed at a moment
drawn from the time in which it makes shards; when few shards are left, one to four processes
finish. This is repeated until so many kills have landed while a shard was being made. After that
every fault point of `stillroom.cache.faults` is tried with one and with three processes, at its
first and its third visit.

An observer process opens whatever has a shard's name, all the time, and reads every row. Every
finished cache must be the uninterrupted one row by row, with the bytes of every body file, clean
under the scrub. Of what a killed process had appended, only rows of one shard may be lost. Anything
else ends in exit status 1. Figures: `benchmarks/results/kills_cpu<cores>_<yyyymm>.json`. Minutes.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from bench.machine import RESULTS, save
from bench.observer import observe

from stillroom.cache import Cache, ShardWriter, find_caches
from stillroom.cache.faults import POINTS
from stillroom.extraction.process import ProcessContext

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "extraction" / "fire"))

from forked import BodyName, fork, make_pictures, recipe_of, start, wait
from same_cache import differences

SIZE_PX, NUM_TRAIN, NUM_VAL, SHARD_ROWS = 16, 56, 8, 8
ONCE = ("identity-linked", "codecs-published", "manifest-next", "quarantined")


@dataclass(slots=True)
class Tally:
    """What is counted over all kills of one body."""

    random_kills: Counter[str] = field(default_factory=Counter)  # by what was interrupted
    point_kills: Counter[str] = field(default_factory=Counter)  # by fault point
    finished_by: Counter[int] = field(default_factory=Counter)  # processes of the last run
    ended_before_the_kill: int = 0
    lost_rows: list[int] = field(default_factory=list)  # per kill
    folders_in_tmp: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def landed(self) -> int:
        """Kills while a shard was being made."""
        return self.random_kills.total() - self.random_kills["between shards"]


class Bench:
    """Pictures, one uninterrupted cache, and the attempts on others."""

    def __init__(self, folder: Path, body: BodyName, seed: int) -> None:
        self._folder, self.random = folder, random.Random(seed)
        self._body: BodyName = body
        self._num_roots = self._num_ledgers = 0
        self.tally = Tally()
        self._shards = make_pictures(folder / "pictures", NUM_TRAIN, NUM_VAL, SIZE_PX, SHARD_ROWS)
        began = time.perf_counter()
        assert wait(self._start(folder / "whole", ProcessContext(), folder / "ledger")) == 0
        (self._whole,) = find_caches(folder / "whole")
        self.shard_s = (time.perf_counter() - began) / len(self._whole.shard_ids())
        (folder / "killed").mkdir()

    def new_root(self) -> Path:
        self._num_roots += 1
        return self._folder / "killed" / f"{self._num_roots:04}"

    def kill_at_random(self, root: Path) -> None:
        """Start one to four processes and kill each while it makes its first shards."""
        children = self._start_several(root, self.random.randint(1, 4))
        due: dict[int, float | None] = dict.fromkeys(children)
        while due:
            for child in list(due):
                now = time.perf_counter()
                if _has_ended(child):
                    self.tally.ended_before_the_kill += 1
                    os.waitpid(child, 0)
                    del due[child]
                elif due[child] is None and list(root.glob(f"*/tmp/*-{child}-*")):
                    due[child] = now + self.random.uniform(0, 2.5 * self.shard_s)
                elif (moment := due[child]) is not None and now > moment:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    self.tally.random_kills[_during(root, child)] += 1
                    self._count_lost(root, children[child])
                    del due[child]
            time.sleep(0.001)

    def kill_at(self, root: Path, fault: str, processes: int) -> None:
        """Start processes that all die at one fault point."""
        ask = {"STILLROOM_FAULT": fault}
        children = self._start_several(root, processes, lambda: os.environ.update(ask))
        for child, ledger in children.items():
            if wait(child) == -signal.SIGKILL:
                self.tally.point_kills[fault.partition(":")[0]] += 1
                self._count_lost(root, ledger)

    def finish(self, root: Path, quarantined: int = 0) -> None:
        """Complete a cache with one to four processes and compare it."""
        processes = self.random.randint(1, 4)
        self.tally.finished_by[processes] += 1
        statuses = [wait(child) for child in self._start_several(root, processes)]
        (cache,) = find_caches(root)
        problems = differences(self._whole, cache, quarantined=quarantined)
        problems += [f"ended with {status}" for status in statuses if status]
        self.tally.problems += [f"{root.name}: {problem}" for problem in problems]
        self.tally.folders_in_tmp += len(list((cache.path / "tmp").iterdir()))

    def num_missing(self, root: Path) -> int:
        caches = find_caches(root) if root.exists() else ()
        return len(caches[0].missing()) if caches else len(self._whole.shard_ids())

    def observed(self) -> tuple[Path, Path, int]:
        """Start the observer; return its problems, its end, its id."""
        problems, stop = self._folder / "seen", self._folder / "stop"
        killed = self._folder / "killed"
        return problems, stop, fork(lambda: observe(killed, problems, stop), self._folder / "log")

    def damaged(self) -> Path:
        """Return a complete cache with one cut file."""
        self._num_roots += 1
        root = self._folder / f"damaged-{self._num_roots}"  # not for the observer
        assert wait(self._start(root, ProcessContext(), self._folder / "ledger")) == 0
        (cache,) = find_caches(root)
        path = cache.path / cache.shard_spec(cache.shard_ids()[1]).folder / "shard.json"
        path.write_bytes(path.read_bytes()[:-5])
        return root

    def _start(
        self,
        root: Path,
        place: ProcessContext,
        ledger: Path,
        before: Callable[[], object] = lambda: None,
    ) -> int:
        def prepare() -> None:
            _keep_ledger(ledger)
            before()

        recipe = recipe_of(self._shards, root, body=self._body)
        return start(recipe, place, self._folder / "log", prepare)

    def _start_several(
        self, root: Path, processes: int, before: Callable[[], object] = lambda: None
    ) -> dict[int, Path]:
        """Return the ledger of each process by its id."""
        children = {}
        for rank in range(processes):
            self._num_ledgers += 1
            ledger = self._folder / f"ledger-{self._num_ledgers}"
            children[
                self._start(root, ProcessContext(rank=rank, world=processes), ledger, before)
            ] = ledger
        return children

    def _count_lost(self, root: Path, ledger: Path) -> None:
        """Count the rows that a killed process had appended to shards that nobody has published."""
        appended = Counter(ledger.read_text().split()) if ledger.exists() else Counter()
        caches: tuple[Cache, ...] = find_caches(root)
        missing = set(map(str, caches[0].missing())) if caches else set()
        lost = {shard: rows for shard, rows in appended.items() if shard in missing}
        self.tally.lost_rows.append(sum(lost.values()))
        if len(lost) > 2 or sum(lost.values()) > 2 * SHARD_ROWS:  # one is published, one grows
            self.tally.problems.append(f"{root.name}: lost {lost}")


def _keep_ledger(path: Path) -> None:
    """Write a line with the shard's name for every row that this process appends."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    append = ShardWriter.append_frames

    def appending(self: ShardWriter, *row: Any) -> None:
        append(self, *row)
        os.write(descriptor, f"{self._spec.shard_id}\n".encode())

    ShardWriter.append_frames = appending  # type: ignore[method-assign]


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _during(root: Path, child: int) -> str:
    """How far a killed process was with the shards that it was making."""
    folders = list(root.glob(f"*/tmp/*-{child}-*"))
    if not folders:
        return "between shards"
    if any((folder / "shard.json").is_file() for folder in folders):
        return "publishing"
    names = ("rows.tar", "0")  # the files that hold rows, in either body
    files = (path for folder in folders for path in folder.rglob("*") if path.name in names)
    return "appending rows" if any(path.stat().st_size for path in files) else "opening a shard"


def measure(folder: Path, body: BodyName, kills: int, seed: int) -> dict[str, Any]:
    """Kill and finish until there are enough kills; return the figures of one body."""
    began = time.perf_counter()
    bench = Bench(folder, body, seed)
    problems, stop, observer = bench.observed()
    while bench.tally.landed < kills:
        root = bench.new_root()
        for _ in range(6):
            if bench.num_missing(root) > 1:
                bench.kill_at_random(root)
        bench.finish(root)
    for point in POINTS:
        for visit in (1,) if point in ONCE else (1, 3):
            for processes in (1, 3):
                is_damaged = point == "quarantined"
                root = bench.damaged() if is_damaged else bench.new_root()
                bench.kill_at(root, f"{point}:{visit}", processes)
                bench.finish(root, quarantined=is_damaged)
    stop.touch()
    assert wait(observer) == 0
    looks, shards, rows = map(int, stop.read_text().split())
    tally = bench.tally
    tally.problems += [f"seen: {line}" for line in problems.read_text().splitlines()]
    tally.problems += [f"never killed at {point}" for point in set(POINTS) - {*tally.point_kills}]
    return {
        "kills_at_random": dict(tally.random_kills),
        "kills_while_a_shard_was_made": tally.landed,
        "kills_at_fault_points": {point: tally.point_kills[point] for point in POINTS},
        "kills": tally.random_kills.total() + tally.point_kills.total(),
        "ended_before_the_kill": tally.ended_before_the_kill,
        "caches_finished": tally.finished_by.total(),
        "finished_by_processes": {str(n): tally.finished_by[n] for n in sorted(tally.finished_by)},
        "rows_of_a_shard": SHARD_ROWS,
        "most_rows_lost_by_a_kill": max(tally.lost_rows),
        "mean_rows_lost_by_a_kill": round(sum(tally.lost_rows) / len(tally.lost_rows), 2),
        "observer": {"looks": looks, "shards_read": shards, "rows_read": rows},
        "folders_left_in_tmp": tally.folders_in_tmp,
        "shard_seconds": round(bench.shard_s, 3),
        "seconds": round(time.perf_counter() - began, 1),
        "problems": tally.problems,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="that land while a shard is made")
    parser.add_argument("--seed", type=int, default=0, help="draws moments and processes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the figures")
    flags = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        for body in get_args(BodyName):
            (Path(name) / body).mkdir()
            figures[body] = measure(Path(name) / body, body, flags.kills, flags.seed)
    command = f"python benchmarks/kills.py --kills {flags.kills} --seed {flags.seed}"
    save("kills", command, figures, flags.results)
    sys.exit(1 if any(of_body["problems"] for of_body in figures.values()) else 0)


if __name__ == "__main__":
    main()
