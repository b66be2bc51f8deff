"""Disturbed runs of stage 1 in forked children, each compared with an undisturbed one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from file_system import list_events
from forked import BodyName, make_pictures, recipe_of, start, wait
from same_cache import differences

from stillroom.cache import Cache, find_caches
from stillroom.cache.folder import BODIES
from stillroom.extraction.process import ProcessContext

NUM_SHARDS = 3
ALONE = ProcessContext()


class World:
    """Pictures in three shards, the cache of an undisturbed run, a new folder per attempt."""

    def __init__(self, folder: Path, body: BodyName, size: int = 16, shard_rows: int = 2) -> None:
        self._folder, self._count, self.body = folder, 0, body
        self.second = f"train-000001{BODIES[body].suffix}"  # the folder of the second shard
        folder.mkdir(parents=True)
        rows = (2 * shard_rows, shard_rows)
        self.shards = make_pictures(folder / "pictures", *rows, size, shard_rows)
        whole = self.attempt()
        assert whole.run() == 0, whole.said
        self.reference = whole.cache

    def events(self) -> list[str]:
        """Return what an undisturbed run does to the file system, in order."""
        attempt = self.attempt()
        log = attempt.log.with_suffix(".events")
        assert attempt.run(lambda: list_events(attempt.root, log)) == 0
        return log.read_text().splitlines()

    def attempt(self, root: Path | None = None, teacher: str = "one", **run: Any) -> "Attempt":
        """Return an attempt in a folder of caches of its own, or in `root`."""
        self._count += 1
        own = self._folder / f"{self._count:03}"
        return Attempt(self, root or own, own.with_suffix(".log"), teacher, run)


class Attempt:
    """A folder of caches, a recipe over it, and what stage 1 said."""

    def __init__(
        self, world: World, root: Path, log: Path, teacher: str, run: dict[str, Any]
    ) -> None:
        self.world, self.root, self.log = world, root, log
        self.recipe = recipe_of(world.shards, root, teacher=teacher, body=world.body, **run)
        log.touch()

    def start(
        self, before: Callable[[], object] = lambda: None, place: ProcessContext = ALONE
    ) -> int:
        """Start stage 1, after `before` in the same child; return its id."""
        return start(self.recipe, place, self.log, before)

    def run(self, before: Callable[[], object] = lambda: None) -> int:
        """Run stage 1 to its end; return its status, or minus the signal that ended it."""
        return wait(self.start(before))

    @property
    def said(self) -> str:
        """The last error."""
        return self.log.read_text().rpartition("stillroom: ")[2]

    @property
    def cache(self) -> Cache:
        (cache,) = find_caches(self.root)
        return cache

    def outcome(self, status: int, **more: Any) -> dict[str, Any]:
        """Return what there is after a disturbed run, and how an undisturbed one ends it."""
        caches, text = find_caches(self.root), self.log.read_text()
        found = {
            "status": status,
            "said": self.said if status else "",
            "traceback": "Traceback" in text,
            "published": NUM_SHARDS - len(caches[0].missing()) if caches else 0,
            "in_tmp": sum(len(list((cache.path / "tmp").iterdir())) for cache in caches),
        }
        self.log.write_text("")
        undisturbed = replace(self.recipe, run=replace(self.recipe.run, preflight=False))
        rerun = wait(start(undisturbed, ALONE, self.log))
        problems = [self.log.read_text()] if rerun else []
        problems += differences(self.world.reference, self.cache)
        return found | {"rerun": rerun, "problems": problems} | more
