"""Several writers of one shard, several jobs on one cache, jobs of different identity."""

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from attempts import World
from forked import wait, wait_at

import stillroom.cache.writer as writer
from stillroom.cache import find_caches

NUM_WRITERS = 3


def one_shard(world: World, many: bool) -> dict[str, Any]:
    """Three processes hold the same finished shard and name it at the same moment."""
    outcomes = {}
    for number in range(50 if many else 3):
        attempt, ready, gate = world.attempt(), os.pipe(), os.pipe()
        names = attempt.log.with_suffix(".names")
        before = partial(_hold, ready[1], gate, names)
        children = [attempt.start(before) for _ in range(NUM_WRITERS)]
        _release(ready, gate, NUM_WRITERS)
        statuses = [wait(child) for child in children]
        won = Counter(names.read_text().split())
        outcomes[str(number)] = attempt.outcome(max(statuses), **won)
    return outcomes


def _release(ready: tuple[int, int], gate: tuple[int, int], count: int) -> None:
    """Wait until so many processes stand at a gate, then open it."""
    os.close(ready[1])
    for _ in range(count):
        assert os.read(ready[0], 1) == b".", "one has ended before it came there"
    for descriptor in (*gate, ready[0]):
        os.close(descriptor)


def _hold(ready: int, gate: tuple[int, int], names: Path) -> None:
    """Wait before the first rename until all others are there too; note who was first."""
    publish = writer.ShardWriter.publish

    def publishing(self: Any, provenance: Any) -> bool:
        writer.ShardWriter.publish = publish
        won = publish(self, provenance)
        with names.open("a") as file:
            file.write("won\n" if won else "lost\n")
        return won

    writer.ShardWriter.publish = publishing
    wait_at("read-back", gate, lambda: os.write(ready, b"."))


def whole_jobs(world: World, many: bool) -> dict[str, Any]:
    """Two whole jobs, each of which takes itself for the only one, on one cache."""
    outcomes = {}
    for number in range(50 if many else 3):
        attempt, ready, gate = world.attempt(), os.pipe(), os.pipe()
        before = partial(wait_at, "folder-made", gate, partial(os.write, ready[1], b"."))
        children = [attempt.start(before) for _ in range(2)]
        _release(ready, gate, 2)  # both are in their first shard
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
