"""Several writers of one shard, several jobs on one cache, jobs of different identity."""

import os
from collections import Counter
from typing import Any

from attempts import World
from bench.forked import wait

import stillroom.cache.writer as writer
from stillroom.cache import find_caches

NUM_WRITERS = 3


def one_shard(world: World, many: bool) -> dict[str, Any]:
    """Three processes hold the same finished shard and name it at the same moment."""
    outcomes = {}
    for number in range(50 if many else 3):
        attempt = world.attempt()
        names = attempt.log.with_suffix(".names")
        ready, go = os.pipe(), os.pipe()
        children = [
            attempt.start(lambda r=ready[1], g=go, n=names: _hold(r, g, n))
            for _ in range(NUM_WRITERS)
        ]
        waiting = b""
        while len(waiting) < NUM_WRITERS:
            waiting += os.read(ready[0], 1)
        os.close(go[1])  # the end of that pipe is the signal
        statuses = [wait(child) for child in children]
        for descriptor in (go[0], *ready):
            os.close(descriptor)
        won = Counter(names.read_text().split())
        outcomes[str(number)] = attempt.outcome(max(statuses), **won)
    return outcomes


def _hold(ready: int, go: tuple[int, int], names: Any) -> None:
    """Wait before the first rename until all others are there too; note who was first."""
    rename, reach = writer.ShardWriter._rename, writer.reach

    def reaching(name: str) -> None:
        if name == "read-back":
            os.close(go[1])
            os.write(ready, b".")
            os.read(go[0], 1)
            writer.reach = reach

    def renaming(self: Any) -> bool:
        won = rename(self)
        if self._spec.folder.startswith("train-000000"):
            with names.open("a") as file:
                file.write("won\n" if won else "lost\n")
        return won

    writer.reach, writer.ShardWriter._rename = reaching, renaming


def whole_jobs(world: World, many: bool) -> dict[str, Any]:
    """Two whole jobs, each of which takes itself for the only one, on one cache."""
    outcomes = {}
    for number in range(50 if many else 3):
        attempt = world.attempt()
        children = [attempt.start() for _ in range(2)]
        statuses = [wait(child) for child in children]
        complete = attempt.cache.is_complete
        outcomes[str(number)] = attempt.outcome(max(statuses), complete=complete)
    return outcomes


def identities(world: World, many: bool) -> dict[str, Any]:
    """A job of another teacher on a cache that is named exactly; then both on the folder above."""
    first = world.attempt()
    assert first.run() == 0
    path = first.cache.path
    before = sorted(entry.name for entry in path.iterdir())
    second = world.attempt(root=path, teacher="two")
    status, said = second.run(), second.said
    nested = sorted(entry.name for entry in path.iterdir()) != before
    both = [world.attempt(root=first.root, teacher=name) for name in ("two", "three")]
    statuses = [wait(child) for child in [attempt.start() for attempt in both]]
    complete = [cache.is_complete for cache in find_caches(first.root)]
    return {
        "second": {"status": status, "said": said, "nested": nested},
        "above": {"statuses": statuses, "complete": complete},
    }
