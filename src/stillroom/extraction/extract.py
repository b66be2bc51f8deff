"""Stage 1: run the frozen teachers once over every picture and keep what they said.

Decoding (threads), inference (the device), compressing (threads), appending (a thread) and the
publication of the shard before (another) overlap; at most two shards are unpublished. Work is
divided without locks: rank r takes shards[r::world], skips what is published, then sweeps the rest
from its own offset; the first writer of a shard wins.
"""

import platform
import signal
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stillroom
from stillroom.cache.folder import Cache, claim_cache
from stillroom.cache.writer import Frame, ShardWriter
from stillroom.device_memory import is_out_of_memory
from stillroom.errors import UserError, first_line, with_urls
from stillroom.extraction.background import Background
from stillroom.extraction.cache_identity import compose, existing_cache, probe
from stillroom.extraction.calibrate import fit_codecs, restore_fitted
from stillroom.extraction.encode import (
    EncodedBatch,
    RowPicture,
    ShardError,
    encode,
    read_batches,
    run_teachers,
)
from stillroom.extraction.estimate import Estimate
from stillroom.extraction.gate import InParts, gate_pictures, judge
from stillroom.extraction.out_of_memory import too_large
from stillroom.extraction.preflight import require_space
from stillroom.extraction.process import ProcessContext
from stillroom.os_errors import explain_os_errors
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.pictures.loader import read_ahead
from stillroom.pictures.pixels import decoder_versions
from stillroom.progress_bar import progress_bar
from stillroom.recipe import Recipe
from stillroom.recipe_check import check, check_targets
from stillroom.signals import raise_if_stopped, stop_on_signals
from stillroom.teachers.protocol import BuiltTeacher, Reports
from stillroom.types import Row, ShardId, TargetSpec

_Compressing = tuple[EncodedBatch, list[Future[dict[str, Frame]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a rank works with while it makes shards."""

    recipe: Recipe
    pictures: PictureSet
    cache: Cache
    teachers: tuple[BuiltTeacher, ...]
    process: ProcessContext
    quality: dict[str, Any]
    stop: threading.Event
    publication: Background = field(default_factory=Background)

    def outputs(
        self, places: Iterable[tuple[ShardId, Row]], under_way: str = "no shard was begun"
    ) -> Generator[tuple[list[RowPicture], dict[str, Tensor]], None, None]:
        """Yield rows with their pictures and what the teachers answer, by batch, on the device."""
        size, run = self.recipe.size_of(self.pictures), self.recipe.run
        read = read_batches(self.pictures, places, size, self.recipe.micro_batch, run.num_workers)
        with closing(read) as batches:
            for batch in batches:
                self.check_stop(under_way)
                yield batch, run_teachers(self.teachers, batch, self.process.device)

    def check_stop(self, under_way: str) -> None:
        """Raise Stopped once a signal has asked for it; it says what there is of the cache."""
        if self.stop.is_set():
            self.publication.wait()
            every = len(self.cache.shard_ids())
            kept = f"{every - len(self.cache.missing())} of {every} shards are kept"
            raise_if_stopped(self.stop, f"{under_way}; {kept} in {self.cache.path}")

    def batches(self, shard: ShardId) -> Generator[EncodedBatch, None, None]:
        """Yield what is kept of a shard's rows, in order; batches never straddle shards."""
        rows = self.recipe.rows_of(self.pictures.open(shard))
        under_way = f"{shard} was not finished and is left out"
        with closing(self.outputs(((shard, row) for row in rows), under_way)) as outputs:
            for some, targets in outputs:
                self.check_stop(under_way)
                yield encode(self.cache, some, targets)


def cache_teacher(recipe: Recipe, process: ProcessContext) -> Cache:
    """Run stage 1 of a recipe as one of `process.world` processes and return the cache.

    Raises UserError for what cannot work (where the device's memory runs out, it names the
    micro-batch that fits), FailureError where disk or system fails, Stopped when a signal asked to
    stop; the published shards stay.
    """
    with (
        stop_on_signals(signal.SIGINT) as stop,
        explain_os_errors("stage 1 cannot go on", recipe.run.place(recipe.run.cache)),
    ):
        try:
            return _cache_teacher(recipe, process, stop)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        raise too_large(recipe, process, stop, reason)  # with the error, its tensors are gone


def _cache_teacher(recipe: Recipe, process: ProcessContext, stop: threading.Event) -> Cache:
    pictures = open_pictures(recipe.run.place(recipe.data.shards))
    check(recipe, pictures)
    if not recipe.teachers:
        what = f"recipe {recipe.name!r} has no teacher, so there is nothing to cache"
        raise UserError(what, fix="stillroom train needs no cache of it")
    teachers = tuple(config.build(process.device) for config in recipe.teachers)
    for teacher in teachers:
        if isinstance(teacher, Reports) and teacher.report:
            process.print(teacher.report)
    specs = probe(recipe, pictures, teachers, process.device)
    check_targets(recipe, {spec.name: spec for spec in specs})
    raise_if_stopped(stop, "nothing was begun")
    identity = compose(recipe, pictures, teachers, specs)
    cache = existing_cache(recipe, identity)
    if cache is not None:
        restore_fitted(cache)
        for folder in cache.quarantine_bad():
            print(f"warning: a damaged shard was set aside and is made again: {folder}", flush=True)
    if cache is None or cache.missing():
        quality = _gate(recipe, teachers, pictures, process, stop)
        raise_if_stopped(stop, "no shard was begun")
        cache = cache or claim_cache(recipe.run.place(recipe.run.cache), recipe.name, identity)
        process.print(f"cache {with_urls(cache.path)}: {_describe(specs)}")
        job = _Job(
            recipe=recipe,
            pictures=pictures,
            cache=cache,
            teachers=teachers,
            process=process,
            quality=quality,
            stop=stop,
        )
        _fill(job)
    cache.finalize()
    return cache


def _fill(job: _Job) -> None:
    """Fit the codecs, see whether what is missing fits on the disk, and make it."""
    recipe, cache, missing = job.recipe, job.cache, job.cache.missing()
    fit_codecs(cache, recipe, job.pictures, job.outputs)
    job.process.print(
        f"{sum(map(cache.shard_rows, missing))} rows to make in {len(missing)} shards,"
        f" {sum(part.num_bytes for part in cache.parts) / 1e6:.3g} MB a row before compression"
    )
    _warn_of_size(recipe, cache, job.process)
    if recipe.run.preflight:
        require_space(cache, missing, lambda: next(job.batches(missing[0])).parts)
    _make_shards(job, missing)


def _gate(
    recipe: Recipe,
    teachers: tuple[BuiltTeacher, ...],
    pictures: PictureSet,
    process: ProcessContext,
    stop: threading.Event,
) -> dict[str, Any]:
    """Judge every teacher on this rank's own device; returns figures per target.

    A rank that finds a fault says so itself, whichever it is.
    """
    if recipe.gate == "off":
        process.print("quality gate: off")
        return {}
    quality: dict[str, Any] = {}
    where = f" on {process.device_name}, rank {process.rank} of {process.world}" * (
        process.world > 1
    )
    size, regions = recipe.size_of(pictures), recipe.data.regions
    samples = gate_pictures(pictures, size=size, regions=regions)
    classes = len(recipe.classes_of(pictures))
    for config, built in zip(recipe.teachers, teachers, strict=True):
        parts = InParts(built, recipe.micro_batch)
        for verdict in judge(config, parts, samples, classes, recipe.gate_floor, stop):
            figures = ", ".join(f"{name} {value:.4g}" for name, value in verdict.figures.items())
            process.print(f"quality gate, {verdict.target}: {figures}")
            if verdict.note:
                process.print(f"quality gate, {verdict.target}: {verdict.note}")
            if verdict.reasons and recipe.gate == "refuse":
                raise UserError(
                    f"the teacher of target {verdict.target!r} failed the quality gate{where}",
                    found="; ".join(verdict.reasons),
                    fix="mend the teacher's fields or weights, or see what it does with --gate warn"
                    + ("; where only this rank fails, see to its device" if where else ""),
                )
            for reason in verdict.reasons:
                print(f"warning: {verdict.target}{where}: {reason}", flush=True)
            quality[verdict.target] = {**verdict.figures, "reasons": list(verdict.reasons)}
    return quality


def _make_shards(job: _Job, missing: tuple[ShardId, ...]) -> None:
    """Make this rank's share of the missing shards, then whatever others have not yet published."""
    cache, process = job.cache, job.process
    every = cache.shard_ids()
    own = [shard for shard in every[process.rank :: process.world] if shard in missing]
    offset = process.rank * len(every) // process.world
    rest = [s for s in every[offset:] + every[:offset] if s in missing and s not in own]
    rows = sum(cache.shard_rows(shard) for shard in every)
    done = rows - sum(cache.shard_rows(shard) for shard in missing)
    hidden = job.recipe.run.quiet or not process.is_first
    estimate = Estimate(rows - done, process.world, lambda text: _say(bar, process, text))
    with (
        progress_bar(
            total=rows, initial=done, unit="row", disable=hidden, desc=cache.path.name
        ) as bar,
        job.publication,
        ThreadPoolExecutor(job.recipe.run.num_workers, thread_name_prefix="compress") as pool,
    ):
        for shard in own + rest:
            if cache.is_published(shard):
                bar.update(cache.shard_rows(shard))
                continue
            job.check_stop(f"{shard} was not begun")
            with explain_os_errors(f"shard {shard} could not be made", cache.path):
                _make_shard(job, shard, bar, estimate, pool)


def _say(bar: Any, process: ProcessContext, text: str) -> None:
    bar.clear()
    process.print(text)


def _make_shard(
    job: _Job, shard: ShardId, bar: Any, estimate: Estimate, pool: ThreadPoolExecutor
) -> None:
    began = time.perf_counter()
    writer, left = job.cache.writer(shard), job.cache.shard_rows(shard)
    error = ShardError()

    def compress(batch: EncodedBatch) -> _Compressing:
        return batch, [pool.submit(writer.compress, row, parts) for row, parts, *_ in batch.each()]

    def append(compressing: _Compressing) -> int:
        before, (batch, frames) = writer.num_bytes, compressing
        for (row, _, statistics, pixels), compressed in zip(batch.each(), frames, strict=True):
            writer.append_frames(row, compressed.result(), statistics, pixels)
        error.add(batch)
        estimate.add(len(batch.rows), writer.num_bytes - before)
        return len(batch.rows)

    with ExitStack() as held:
        held.enter_context(writer)
        # One thread appends what the pool has compressed: the teacher waits for neither.
        with (
            closing(job.batches(shard)) as batches,
            closing(read_ahead(map(compress, batches), append, workers=1, depth=2)) as appended,
        ):
            for num_rows in appended:
                job.publication.look()
                if job.cache.is_published(shard):  # another was faster: go on with the next
                    bar.update(left)
                    return
                left -= num_rows
                bar.update(num_rows)
        error.require(job.cache, shard)
        provenance = _provenance(job, job.cache.shard_rows(shard), time.perf_counter() - began)
        job.publication.wait()
        job.publication.begin(
            partial(_publish, job, shard, writer, provenance, bar, held.pop_all())
        )


def _publish(
    job: _Job,
    shard: ShardId,
    writer: ShardWriter,
    provenance: dict[str, Any],
    bar: Any,
    held: ExitStack,
) -> None:
    cache, every = job.cache, job.cache.shard_ids()
    with explain_os_errors(f"shard {shard} could not be made", cache.path):
        with held:
            writer.publish(provenance)
        row_mb = cache.shard_bytes(shard) / cache.shard_rows(shard) / 1e6
        published = f"{len(every) - len(cache.missing())}/{len(every)} shards"
        bar.set_postfix_str(f"{published}, {row_mb:.3g} MB/row", refresh=False)


def _provenance(job: _Job, rows: int, seconds: float) -> dict[str, Any]:
    return {
        "device": job.process.device_name,
        "providers": [built.provider for built in job.teachers],
        "gate": job.recipe.gate,
        "quality": job.quality,
        "seconds": round(seconds, 3),
        "rows_per_s": round(rows / seconds, 3),
        "versions": decoder_versions()
        | {
            "numpy": np.__version__,
            "python": platform.python_version(),
            "stillroom": stillroom.__version__,
            "torch": str(torch.__version__),
        },
    }


def _warn_of_size(recipe: Recipe, cache: Cache, process: ProcessContext) -> None:
    """Say so when a teacher shard would pass the limit (before compression), and which
    --shard-rows avoids it.
    """
    row_bytes = sum(part.num_bytes for part in cache.parts)
    rows = max(cache.shard_rows(shard) for shard in cache.shard_ids())
    picture_bytes = row_bytes * recipe.views.count
    limit_gb = recipe.run.shard_limit_gb
    if row_bytes * rows / 1e9 > limit_gb:
        process.print(
            f"warning: a teacher shard may take {row_bytes * rows / 1e9:.1f} GB"
            f" ({row_bytes / 1e6:.1f} MB a row before compression); pack the pictures with"
            f" --shard-rows {max(1, int(limit_gb * 1e9 // picture_bytes))} to avoid it"
        )


def _describe(specs: Sequence[TargetSpec]) -> str:
    return ", ".join(f"{s.name} {s.kind} {'x'.join(map(str, s.shape))} ({s.codec})" for s in specs)
