"""The teachers of a recipe on a sample of its training rows: time a row, and what they answer."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.errors import UserError
from stillroom.extraction.cache_identity import probe
from stillroom.extraction.encode import RowPicture, run_teachers
from stillroom.pictures.dataset import PictureSet
from stillroom.pictures.rows import other_view, picture_of, rows_of
from stillroom.recipe import Recipe
from stillroom.recipe_check import check_targets
from stillroom.signals import raise_if_stopped
from stillroom.types import Row, ShardId, TargetSpec

KEPT_ROWS = 80  # as many as codecs are fitted on, and 16
_KEPT_BYTES = 1 << 30  # of their targets, float32, while they are gathered

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What teachers took and, of some rows in order, what they answered (n c y x, on the CPU)."""

    teacher_ms: float
    picture_ms: float  # of one core
    num_rows: int  # that were measured
    specs: tuple[TargetSpec, ...]
    kept: list[RowPicture]
    targets: dict[str, Float[Tensor, "n _ _ _"]]


def measure_teachers(
    recipe: Recipe,
    pictures: PictureSet,
    device: str,
    num_rows: int,
    limit_s: float,
    stop: threading.Event,
) -> Answers:
    """Run the teachers on rows spread over the training split, in batches as stage 1 does, until
    `limit_s` is over; loading and one batch that warms up count nowhere. Errors as stage 1's.
    """
    teachers = [config.build(device) for config in recipe.teachers]
    specs = probe(recipe, pictures, teachers, device)
    check_targets(recipe, {spec.name: spec for spec in specs})
    kept = _Kept(specs)
    seconds: list[float] = []
    picture_s: list[float] = []
    began = time.perf_counter()
    places = list(sample(recipe, pictures, num_rows))
    for first in range(0, len(places), recipe.micro_batch):
        if len(seconds) > 1 and time.perf_counter() - began > limit_s:
            break
        raise_if_stopped(stop, f"{len(picture_s)} rows were measured")
        batch = []
        for shard, row in places[first : first + recipe.micro_batch]:
            start = time.thread_time()
            batch.append(_read(pictures, shard, row, recipe.size_of(pictures)))
            picture_s.append(time.thread_time() - start)
        if not seconds:
            run_teachers(teachers, batch, device)
            wait_for(device)
        start = time.perf_counter()
        outputs = run_teachers(teachers, batch, device)
        wait_for(device)
        seconds += [(time.perf_counter() - start) / len(batch)] * len(batch)
        kept.add(batch, outputs)
    return Answers(
        teacher_ms=1e3 * median(seconds),
        picture_ms=1e3 * median(picture_s),
        num_rows=len(picture_s),
        specs=specs,
        kept=[pair for pair, _ in kept.rows],
        targets={s.name: torch.stack([found[s.name] for _, found in kept.rows]) for s in specs},
    )


def sample(recipe: Recipe, pictures: PictureSet, num_rows: int) -> Iterator[tuple[ShardId, Row]]:
    """Yield at most so many rows, evenly spread over the training shards and each of them, in
    order; each shows another of its picture's views. Raises UserError where there is none.
    """
    shards = pictures.shard_ids("train")
    if not shards:
        raise UserError(f"{pictures.path} has no training split", found=f"{pictures.shard_ids()}")
    chosen = shards[:: max(1, len(shards) // num_rows)][:num_rows]
    left = num_rows
    for number, shard in enumerate(chosen):
        opened = pictures.open(shard)
        rows = rows_of(
            opened, recipe.views, regions=recipe.data.regions is not None, first_only=True
        )
        count = min(len(rows), left // (len(chosen) - number))
        left -= count
        for i in range(count):
            row, view = rows[i * len(rows) // count], i % recipe.views.count
            yield shard, row if view == 0 else other_view(opened, row, recipe.views, view)


def _read(pictures: PictureSet, shard: ShardId, row: Row, size: tuple[int, int]) -> RowPicture:
    opened = pictures.open(shard)
    return row, picture_of(opened.read(opened.index(row.key), labels=False), row, size)


def wait_for(device: str) -> None:
    """Return when a device has done what it was given; a CPU always has."""
    if device != "cpu":
        torch.cuda.synchronize(device)


class _Kept:
    """Rows evenly spread over all that are added, however many those will be."""

    def __init__(self, specs: Sequence[TargetSpec]) -> None:
        row_bytes = sum(4 * torch.Size(spec.shape).numel() for spec in specs)
        self._most = min(2 * KEPT_ROWS, max(2, _KEPT_BYTES // row_bytes))
        self._every, self._seen = 1, 0
        self._rows: list[tuple[RowPicture, dict[str, Tensor]]] = []

    def add(self, batch: Sequence[RowPicture], outputs: dict[str, Tensor]) -> None:
        """Gather every n-th row; where there is no more room, n doubles."""
        for i, pair in enumerate(batch):
            if self._seen % self._every == 0:
                found = {name: target[i].float().cpu().clone() for name, target in outputs.items()}
                self._rows.append((pair, found))
            self._seen += 1
            if len(self._rows) > self._most:
                self._rows, self._every = self._rows[::2], 2 * self._every

    @property
    def rows(self) -> list[tuple[RowPicture, dict[str, Tensor]]]:
        """At most `KEPT_ROWS` of them, in order."""
        return thinned(self._rows, KEPT_ROWS)


def thinned(rows: list[Item], most: int) -> list[Item]:
    """Return at most so many of some rows, evenly spread."""
    count = min(most, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
