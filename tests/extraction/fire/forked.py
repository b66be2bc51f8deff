"""Stage 1 in forked children of one process, with a teacher that is a little numpy.

A started process pays seconds for its imports; a forked child is at work within milliseconds. The
parent must have no thread: it makes even the pictures in a child.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
import zarr  # noqa: F401  (0.3 s that each child would pay)
from PIL import Image

import stillroom.cache.writer as writer
from stillroom.cli import run_command
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.networks.normalise import Normalise
from stillroom.pictures.make import make_shards
from stillroom.pictures.synthetic import draw_shapes
from stillroom.recipe import Data, Recipe, Run
from stillroom.recipes.tiny import tiny
from stillroom.teachers.configs import RunTeacher

BodyName = Literal["zarr", "tar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumpyTeacher(RunTeacher):
    """Arithmetic on the picture: four logits a pixel and sixteen features per 4 x 4 pixels.

    Every value is a function of its own pixels, whatever the batch. `path` is part of the identity,
    so that two such teachers can differ.
    """

    def identity(self, with_files: bool = True, recorded: Any = None) -> dict[str, Any]:
        targets = {self.target: "logits", **dict(self.taps)}
        return {"class": "NumpyTeacher", "targets": targets, "path": self.path}

    def build(self, device: str) -> Any:
        return _Built(self.target, *(name for name, _ in self.taps))


class _Built:
    provider = "numpy"
    damage: tuple[str, ...] = ()  # nothing was found in its weights
    identity: Any = ()  # nothing that only the built one knows

    def __init__(self, logits: str, features: str) -> None:
        self._names, self.preprocessing = (logits, features), Normalise((0.0,) * 3, (1.0,) * 3)

    def __call__(self, image: torch.Tensor, **options: Any) -> dict[str, torch.Tensor]:
        pixels = image.numpy()
        logits = np.concatenate([pixels, pixels.max(1, keepdims=True)], 1) * 8 - 4
        cells = np.repeat(pixels[:, :, ::4, ::4], 6, 1)[:, :16]
        features = np.sin(cells * np.arange(1, 17, dtype=np.float32)[:, None, None])
        outputs = zip(self._names, (logits, features), strict=True)
        return {name: torch.from_numpy(array) for name, array in outputs}


def make_pictures(folder: Path, train: int, val: int, size: int, shard_rows: int) -> Path:
    """Pack unlabelled pictures of shapes in a child; return the folder of shards."""

    def work() -> None:
        for split, seeds in (("train", range(train)), ("val", range(1000, 1000 + val))):
            (folder / split).mkdir(parents=True)
            for seed in seeds:
                Image.fromarray(draw_shapes(seed, size)[0]).save(folder / split / f"{seed:06}.png")
        make_shards(
            f"unlabelled:{folder / 'train'}",
            out=folder / "shards",
            val=f"unlabelled:{folder / 'val'}",
            size=(size, size),
            format="png",
            shard_rows=shard_rows,
        )

    assert wait(fork(work, folder.with_name(f"{folder.name}.log"))) == 0
    return folder / "shards"


def recipe_of(
    shards: Path, cache: Path, *, teacher: str = "one", body: BodyName = "zarr", **run_fields: Any
) -> Recipe:
    """Return a recipe of stage 1 over such pictures, in batches of two."""
    made = replace(
        tiny(),
        data=Data(shards=str(shards)),
        teachers=(NumpyTeacher(target="shapes", path=teacher, taps=(("inner", "cells"),)),),
        batch=2,
        micro_batch=2,
        gate="off",
        body=body,
        run=Run(cache=str(cache), device="cpu", workers=1, **run_fields),
    )
    return replace(made, terms=tuple(term for term in made.terms if term.needs.target is not None))


def start(
    recipe: Recipe,
    place: ProcessContext,
    outputs: Path,
    before: Callable[[], object] = lambda: None,
) -> int:
    """Start stage 1 as its command would run it, `before` first; return the child's id."""

    def work() -> None:
        before()
        run_command(lambda: cache_teacher(recipe, place))

    return fork(work, outputs)


def fork(work: Callable[[], object], outputs: Path) -> int:
    """Do some work in a child whose output is appended to a file; return its id."""
    assert threading.active_count() == 1, "a fork would lose threads"
    child = os.fork()
    if child == 0:
        _work(work, outputs)
    return child


def _work(work: Callable[[], object], outputs: Path) -> NoReturn:
    status = 70
    try:
        torch.set_num_threads(1)
        file = os.open(outputs, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 70
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child: int, patience_s: float = 600.0) -> int:
    """Wait for a child; return its exit status, or minus the signal that ended it."""
    until = time.monotonic() + patience_s
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            raise TimeoutError(f"child {child} has not ended in {patience_s} s")
        time.sleep(0.0005)
    return os.waitstatus_to_exitcode(ended[1])


def wait_at(
    point: str, gate: tuple[int, int], arrived: Callable[[], object] = lambda: None
) -> None:
    """Let this process stop at its first visit of a writer's fault point, until nobody holds the
    second end of the pipe `gate`; it calls `arrived` there.
    """
    reach = writer.reach

    def reaching(name: str) -> None:
        if name == point:
            writer.reach = reach
            os.close(gate[1])
            arrived()
            os.read(gate[0], 1)
        reach(name)

    writer.reach = reaching
