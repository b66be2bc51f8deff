"""The teachers of a recipe on a sample of its training rows: time a row, and what they answer."""

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.extraction.cache_identity import probe
from stillroom.extraction.encode import RowPicture, run_teachers
from stillroom.pictures.dataset import PictureSet
from stillroom.pictures.rows import picture_of
from stillroom.recipe import Recipe
from stillroom.recipe_check import check_targets
from stillroom.signals import raise_if_stopped
from stillroom.types import Row, ShardId, TargetSpec

KEPT_ROWS = 80  # as many as codecs are fitted on, and 16
_KEPT_BYTES = 1 << 30  # of their targets, float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What teachers took and, of some rows, what they answered (n c y x, on the CPU)."""

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
    """Run the teachers on rows of the training split, in batches as stage 1 does, until `limit_s`
    is over; loading and one batch that warms up count nowhere. Errors as stage 1's.
    """
    teachers = [config.build(device) for config in recipe.teachers]
    specs = probe(recipe, pictures, teachers, device)
    check_targets(recipe, {spec.name: spec for spec in specs})
    seconds: list[float] = []
    picture_s: list[float] = []
    kept: list[RowPicture] = []
    targets: dict[str, list[Tensor]] = {spec.name: [] for spec in specs}
    began = time.perf_counter()
    places = sample(recipe, pictures, num_rows)
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
        room = _most_kept(specs) - len(kept)
        kept += batch[:room]
        for name, values in targets.items():  # copies: a view would keep the whole batch
            values.append(outputs[name][:room].float().cpu().clone())
    return Answers(
        teacher_ms=1e3 * median(seconds),
        picture_ms=1e3 * median(picture_s),
        num_rows=len(picture_s),
        specs=specs,
        kept=kept,
        targets={name: torch.cat(values) for name, values in targets.items()},
    )


def sample(recipe: Recipe, pictures: PictureSet, num_rows: int) -> list[tuple[ShardId, Row]]:
    """Return at most so many rows that stage 1 would keep of the training split, all views among
    them, of as many of its shards, in no order: the first ones are a sample, too.
    """
    draw = random.Random(0)
    shards = pictures.shard_ids("train")
    chosen = draw.sample(shards, min(len(shards), num_rows))
    each, places = -(-num_rows // len(chosen)), []
    for shard in chosen:
        rows = recipe.rows_of(pictures.open(shard))
        places += [(shard, row) for row in draw.sample(rows, min(each, len(rows)))]
    draw.shuffle(places)
    return places[:num_rows]


def _read(pictures: PictureSet, shard: ShardId, row: Row, size: tuple[int, int]) -> RowPicture:
    opened = pictures.open(shard)
    return row, picture_of(opened.read(opened.index(row.key), labels=False), row, size)


def _most_kept(specs: Sequence[TargetSpec]) -> int:
    row_bytes = sum(4 * torch.Size(spec.shape).numel() for spec in specs)
    return min(KEPT_ROWS, max(2, _KEPT_BYTES // row_bytes))


def wait_for(device: str) -> None:
    """Return when a device has done what it was given; a CPU always has."""
    if device != "cpu":
        torch.cuda.synchronize(device)
