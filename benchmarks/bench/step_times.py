"""Pictures a second of one student's steps in three ways, in one process and turn by turn: alone
(targets in memory), from the cache, and with the teachers in the step.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import stillroom.training.loop as loop
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import process_context
from stillroom.pictures.dataset import open_pictures
from stillroom.planning.measure_student import context_for, train_step
from stillroom.planning.measure_teachers import wait_for
from stillroom.recipe import Recipe
from stillroom.training.batches import decoded_batches, to_batch
from stillroom.training.context import TrainContext
from stillroom.training.log import read_metrics
from stillroom.training.setup import prepare
from stillroom.types import Batch

WARM = 4  # steps that do not count; at 640 px on a CPU the first three are up to twice as slow


def step_times(recipe: Recipe, rounds: int, steps: int) -> dict[str, Any]:
    """Return medians over the rounds, and of each round's ratios; the cache is made where it is
    missing. A run's steps are those of whole epochs, `steps` or more.
    """
    cache = cache_teacher(recipe, process_context(recipe.run.device, {}))
    cached = prepare(recipe)
    device, num_micros = cached.accelerator.device, recipe.batch // recipe.micro_batch
    with closing(cached.stream(range(1))) as stream:
        memory = [to_batch(one, device, cache) for one in stream]
    context = context_for(recipe, open_pictures(Path(recipe.data.shards)), cache.specs)
    teachers = [config.build(device.type) for config in recipe.teachers]

    @torch.inference_mode()
    def asked() -> None:
        for batch in memory:
            for teacher in teachers:
                teacher(batch.image)

    def online(stream: Iterator[Any]) -> list[Batch]:
        found = list(decoded_batches(itertools.islice(stream, num_micros), device, None))
        for batch in found:
            for teacher in teachers:
                batch.targets |= teacher(batch.image)
        return found

    def with_teachers() -> float:
        with closing(context.stream(range(WARM + steps))) as stream:
            return _block(device, steps, lambda: train_step(context, online(stream)))

    blocks: dict[str, Callable[[], float]] = {
        "student": lambda: _block(device, steps, lambda: train_step(context, memory)),
        "cached": lambda: _cached(recipe, cached, steps),
        "teachers": lambda: _block(device, max(1, steps // 2), asked),
        "online": with_teachers,
    }
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        for name, block in blocks.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds[name].append(block())
            if device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated(device)
    return _figures(recipe, seconds) | _memory(peaks)


def profile_steps(recipe: Recipe, path: Path) -> dict[str, Any]:
    """Write a Chrome trace of ten steps of a run from the cache; return what took most time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if recipe.run.device != "cpu" and torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    path.parent.mkdir(parents=True, exist_ok=True)
    apply_gradient = loop.apply_gradient
    ten = torch.profiler.schedule(wait=1, warmup=1, active=10, repeat=1)

    def stepped(*words: Any) -> Tensor:
        norm = apply_gradient(*words)
        profiler.step()
        return norm

    with (
        torch.profiler.profile(activities=activities, schedule=ten) as profiler,
        patch.object(loop, "apply_gradient", stepped),
    ):
        run = replace(recipe.run, log_every=100, evaluate_every=100, quiet=True)
        folder = loop.train(replace(recipe, epochs=-(-13 * recipe.batch // _rows(recipe)), run=run))
    profiler.export_chrome_trace(str(path))
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12)
    return {"trace": path.name, "steps": read_metrics(folder)[-1]["step"], "table": table}


def _rows(recipe: Recipe) -> int:
    return recipe.num_train_rows(open_pictures(Path(recipe.data.shards)))


def _block(device: torch.device, steps: int, work: Callable[[], object]) -> float:
    """Return seconds of one call, over `steps` of them."""
    for _ in range(WARM):
        work()
    wait_for(str(device))
    began = time.perf_counter()
    for _ in range(steps):
        work()
    wait_for(str(device))
    return (time.perf_counter() - began) / steps


def _cached(recipe: Recipe, context: TrainContext, steps: int) -> float:
    """Return seconds a step of a run as users have it, but for its first steps."""
    epochs = -(-(WARM + steps) // context.epoch_steps)
    run = replace(
        recipe.run, name="cached", overwrite=True, quiet=True, log_every=2, evaluate_every=epochs
    )
    lines = read_metrics(loop.train(replace(recipe, epochs=epochs, run=run)))
    rates = [line["rows_per_s"] for line in lines if line["kind"] == "train"]
    counted = rates[min(WARM // 2, len(rates) - 1) :]
    return recipe.batch * statistics.mean(1 / rate for rate in counted)


def _figures(recipe: Recipe, seconds: dict[str, list[float]]) -> dict[str, Any]:
    def ratios(one: Callable[..., float]) -> dict[str, Any]:
        found = [one(*row) for row in zip(*seconds.values(), strict=True)]
        return {"median": round(statistics.median(found), 3), "of_rounds": [*_rounded(found)]}

    return {
        "rows_per_s": {
            name: round(recipe.batch / statistics.median(values), 2)
            for name, values in seconds.items()
        },
        "cached_over_alone": ratios(lambda alone, cached, teachers, online: alone / cached),
        "online_over_cached_seconds": ratios(lambda a, cached, t, online: online / cached),
        # the same over what it should be: (student + teachers) / student
        "online_over_cached_by_arithmetic": ratios(
            lambda alone, cached, teachers, online: online / cached / ((alone + teachers) / alone)
        ),
    }


def _rounded(values: list[float]) -> Iterator[float]:
    return (round(value, 3) for value in values)


def _memory(peaks: dict[str, int]) -> dict[str, Any]:
    if not peaks:
        return {}
    mb = {name: round(value / 2**20, 1) for name, value in peaks.items()}
    return {"peak_mb": mb, "cached_over_alone_memory": round(mb["cached"] / mb["student"], 4)}
