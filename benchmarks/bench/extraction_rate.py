"""Stage 1 against its teachers alone: pictures a second of both, and what the cores allow."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from bench.stages import timed
from torch import Tensor

from stillroom.cache import Cache, ShardWriter
from stillroom.extraction.encode import EncodedBatch, RowPicture, encode, read_batches
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext, num_cores
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.pictures.loader import box_tensor, image_tensor
from stillroom.pictures.rows import picture_of
from stillroom.recipe import Recipe
from stillroom.teachers.protocol import BuiltTeacher
from stillroom.types import Row, ShardId

Result = TypeVar("Result")
Batch = tuple[tuple[Row, ...], Tensor, Tensor | None]  # rows, pictures on the device, boxes


def compare(recipe: Recipe, process: ProcessContext, repeats: int) -> dict[str, Any]:
    """Run the teachers on pictures in memory and stage 1 on packed ones, in turns.

    `allowed` is the share of the teachers' own rate that the cores leave to stage 1: on a CPU
    1 / (1 + core-seconds of the rest / core-seconds that the teachers alone keep busy), beside a
    GPU as much of the rest as the cores do while it works, at most 1.
    """
    batches = [_on_device(batch, process.device) for batch in _read(recipe)]
    num_pictures = sum(len(rows) for rows, *_ in batches)
    teachers = [config.build(process.device) for config in recipe.teachers]
    _run_bare(teachers, batches, process.device)  # warms up
    bare, stage_1 = [], []
    with tempfile.TemporaryDirectory() as name:
        for turn in range(repeats):
            run = replace(recipe.run, cache=f"{name}/{turn}", quiet=True)
            bare.append(_run_bare(teachers, batches, process.device))
            with timed("_make_shards") as spent:
                cache = cache_teacher(replace(recipe, run=run, gate="off"), process)
            stage_1 += spent
        rest_ms = _rest_ms(recipe, cache, teachers, process.device)
    bare_s, bare_core_s = _medians(bare)
    stage_1_s, stage_1_core_s = _medians(stage_1)
    rest_s, cores = sum(rest_ms.values()) * num_pictures / 1e3, num_cores()
    on_cores = process.device == "cpu"
    allowed = 1 / (1 + rest_s / bare_core_s) if on_cores else min(1, cores * bare_s / rest_s)
    ratios = [alone / whole for (alone, _), (whole, _) in zip(bare, stage_1, strict=True)]
    ratio = statistics.median(ratios)
    core_s = {"teachers_alone": bare_core_s, "stage_1": stage_1_core_s}
    core_ms = {name: round(1e3 * seconds / num_pictures, 3) for name, seconds in core_s.items()}
    return {
        "pictures": num_pictures,
        "cores": cores,
        "threads_of_torch": torch.get_num_threads(),
        "bare_pictures_per_s": round(num_pictures / bare_s, 2),
        "stage_1_pictures_per_s": round(num_pictures / stage_1_s, 2),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(ratio, 3),
        "core_ms_a_picture": {**core_ms, **rest_ms},
        "allowed": round(allowed, 3),
        "ratio_by_allowed": round(ratio / allowed, 3),
    }


def _medians(turns: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(s for s, _ in turns), statistics.median(core for _, core in turns)


def _read(recipe: Recipe) -> Iterator[list[RowPicture]]:
    """Yield every row of the packed pictures in batches that never straddle shards."""
    pictures = open_pictures(Path(recipe.data.shards))
    for shard in pictures.shard_ids():
        places = [(shard, row) for row in recipe.rows_of(pictures.open(shard))]
        size = recipe.size_of(pictures)
        with closing(read_batches(pictures, places, size, recipe.micro_batch, 1)) as batches:
            yield from batches


def _on_device(batch: list[RowPicture], device: str) -> Batch:
    images = torch.stack([image_tensor(picture.image) for _, picture in batch])
    boxes = box_tensor([picture for _, picture in batch])
    return tuple(row for row, _ in batch), images.to(device), boxes


def _run_bare(
    teachers: list[BuiltTeacher], batches: list[Batch], device: str
) -> tuple[float, float]:
    """Return the seconds that the teachers take, by the clock and of all cores of this process."""
    began, began_core = time.perf_counter(), time.process_time()
    for rows, image, boxes in batches:
        for built in teachers:
            built(image, rows=rows, boxes=boxes)
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, time.process_time() - began_core


def _rest_ms(
    recipe: Recipe, cache: Cache, teachers: list[BuiltTeacher], device: str
) -> dict[str, float]:
    """Return the core-milliseconds a picture of each other part of stage 1, in one thread: the
    first shard is made once more. What a GPU encodes costs no core.
    """
    pictures, spent = open_pictures(Path(recipe.data.shards)), defaultdict[str, float](float)
    shard, threads = pictures.shard_ids()[0], torch.get_num_threads()
    rows, clock = recipe.rows_of(pictures.open(shard)), partial(_clock, spent)
    torch.set_num_threads(1)
    with cache.writer(shard) as writer:
        for first in range(0, len(rows), recipe.micro_batch):
            some = [(shard, row) for row in rows[first : first + recipe.micro_batch]]
            pairs = clock("decoding", partial(_decode, recipe, pictures, some))
            _, image, boxes = clock("tensors", partial(_on_device, pairs, "cpu"))
            outputs = {}
            for built in teachers:
                outputs |= built(image.to(device), rows=[row for _, row in some], boxes=boxes)
            encoding = partial(encode, cache, pairs, outputs)
            kept = clock("encoding", encoding) if device == "cpu" else encoding()
            clock("writing", partial(_append, writer, kept))
        clock("publishing", partial(writer.publish, {}))
    torch.set_num_threads(threads)
    return {name: round(1e3 * seconds / len(rows), 3) for name, seconds in spent.items()}


def _decode(
    recipe: Recipe, pictures: PictureSet, places: list[tuple[ShardId, Row]]
) -> list[RowPicture]:
    size, found = recipe.size_of(pictures), []
    for shard, row in places:
        opened = pictures.open(shard)
        picture = opened.read(opened.index(row.key), labels=False)
        found.append((row, picture_of(picture, row, size)))
    return found


def _append(writer: ShardWriter, kept: EncodedBatch) -> None:
    for row in kept.each():
        writer.append(*row)


def _clock(spent: dict[str, float], name: str, work: Callable[[], Result]) -> Result:
    began = time.thread_time()
    result = work()
    spent[name] += time.thread_time() - began
    return result
