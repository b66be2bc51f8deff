"""Stage 1: run the frozen teachers once over every picture and keep what they said.

Decoding (threads), inference (the device) and compressing and appending (a writer thread) overlap.
Work is divided without locks: rank r takes shards[r::world], skips what is published, then sweeps
the rest from its own offset; the first writer of a shard wins.
"""

import platform
import queue
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import stillroom
from stillroom.cache.find import find_caches
from stillroom.cache.folder import Cache, claim_cache
from stillroom.codecs import Codec
from stillroom.errors import UserError
from stillroom.extraction.cache_identity import compose, probe
from stillroom.extraction.gate import gate_pictures, judge
from stillroom.extraction.preflight import require_space
from stillroom.extraction.process import ProcessContext
from stillroom.jsonfile import digest
from stillroom.os_errors import explain_os_errors
from stillroom.pictures.dataset import Picture, PictureSet, PictureShard, open_pictures
from stillroom.pictures.loader import image_tensor, read_ahead
from stillroom.recipe import Recipe, check
from stillroom.signals import raise_if_stopped, stop_on_signals
from stillroom.teachers.protocol import BuiltTeacher
from stillroom.types import Kind, Row, RowStatistics, ShardId, TargetSpec, View


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a rank works with while it makes shards."""

    recipe: Recipe
    cache: Cache
    teachers: tuple[BuiltTeacher, ...]
    process: ProcessContext
    quality: dict[str, Any]
    stop: threading.Event


def cache_teacher(recipe: Recipe, process: ProcessContext) -> Cache:
    """Run stage 1 of a recipe as one of `process.world` processes and return the cache.

    Raises UserError for what cannot work, FailureError where disk or system fails, Stopped when a
    signal asked to stop; the published shards stay.
    """
    with (
        stop_on_signals() as stop,
        explain_os_errors("stage 1 cannot go on", Path(recipe.run.cache)),
    ):
        return _cache_teacher(recipe, process, stop)


def _cache_teacher(recipe: Recipe, process: ProcessContext, stop: threading.Event) -> Cache:
    pictures = open_pictures(Path(recipe.data.shards))
    check(recipe, pictures)
    if not recipe.teachers:
        raise UserError(f"recipe {recipe.name!r} has no teacher, so there is nothing to cache")
    assert pictures.geometry is not None
    teachers = tuple(config.build(process.device) for config in recipe.teachers)
    specs = [
        spec
        for config, built in zip(recipe.teachers, teachers, strict=True)
        for spec in probe(config, built, pictures.geometry, recipe.codec, process.device)
    ]
    raise_if_stopped(stop, "nothing was begun")
    cache = _claim(recipe, compose(recipe, pictures, specs))
    if not cache.is_fitted:
        cache.publish_fitted({})
    process.print(f"cache {cache.path}: {_describe(specs)}")
    for folder in cache.quarantine_bad():  # said by the rank that moved it
        print(f"warning: a damaged shard was set aside and is made again: {folder}", flush=True)
    if missing := cache.missing():
        raise_if_stopped(stop, "no shard was begun")
        _warn_of_size(recipe, cache, process)
        quality = _gate(recipe, teachers, pictures, process, stop)
        raise_if_stopped(stop, "no shard was begun")
        job = _Job(
            recipe=recipe,
            cache=cache,
            teachers=teachers,
            process=process,
            quality=quality,
            stop=stop,
        )
        if recipe.run.preflight:
            require_space(cache, missing, lambda: _first_batch(job, pictures.open(missing[0])))
        _make_shards(job, pictures, missing)
    cache.finalize()
    return cache


def _claim(recipe: Recipe, identity: dict[str, Any]) -> Cache:
    """Open the cache of this identity wherever it lies under run.cache, or make it."""
    root = Path(recipe.run.cache)
    wanted = digest(identity)
    for cache in find_caches(root):
        if cache.fingerprint == wanted:
            return cache
    return claim_cache(root, recipe.name, identity)


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
    samples, classes = gate_pictures(pictures), len(pictures.classes)
    for config, built in zip(recipe.teachers, teachers, strict=True):
        for verdict in judge(config, built, samples, classes, recipe.gate_floor, stop):
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


def _make_shards(job: _Job, pictures: Any, missing: tuple[ShardId, ...]) -> None:
    """Make this rank's share of the missing shards, then whatever others have not yet published."""
    cache, process = job.cache, job.process
    every = cache.shard_ids()
    own = [shard for shard in every[process.rank :: process.world] if shard in missing]
    offset = process.rank * len(every) // process.world
    rest = [s for s in every[offset:] + every[:offset] if s in missing and s not in own]
    rows = sum(cache.shard_rows(shard) for shard in every)
    done = rows - sum(cache.shard_rows(shard) for shard in missing)
    with tqdm(
        total=rows, initial=done, unit="row", disable=not process.is_first, desc=cache.path.name
    ) as bar:
        for shard in own + rest:
            if cache.is_published(shard):
                bar.update(cache.shard_rows(shard))
                continue
            raise_if_stopped(job.stop, f"{shard} was not begun")
            with explain_os_errors(f"shard {shard} could not be made", cache.path):
                _make_shard(job, shard, pictures.open(shard), bar)
            row_mb = cache.shard_bytes(shard) / cache.shard_rows(shard) / 1e6
            published = f"{len(every) - len(cache.missing())}/{len(every)} shards"
            bar.set_postfix_str(f"{published}, {row_mb:.3g} MB/row")


def _make_shard(job: _Job, shard: ShardId, source: PictureShard, bar: Any) -> None:
    began = time.perf_counter()
    writer = job.cache.writer(shard)
    with (
        source,
        closing(_batches(source, job.recipe)) as batches,
        writer,
        _Appender(writer) as appender,
    ):
        left = job.cache.shard_rows(shard)
        for batch in batches:
            raise_if_stopped(job.stop, f"{shard} was not finished and is left out")
            if job.cache.is_published(shard):  # another was faster: go on with the next
                bar.update(left)
                return
            left -= len(batch)
            appender.put(*run_teachers(job, batch))
            bar.update(len(batch))
        appender.finish()
        writer.publish(_provenance(job, len(source.keys), time.perf_counter() - began))


def _batches(source: PictureShard, recipe: Recipe) -> Generator[list[Picture], None, None]:
    """Yield the shard's pictures in order, `micro_batch` at a time, decoded ahead; never across
    shards.
    """
    size = recipe.micro_batch
    numbers = range(len(source.keys))
    reader = read_ahead(
        numbers, lambda i: source.read(i, labels=False), recipe.run.workers, depth=2 * size
    )
    batch: list[Picture] = []
    with closing(reader) as pictures:
        for picture in pictures:
            batch.append(picture)
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


def _first_batch(job: _Job, source: PictureShard) -> dict[str, np.ndarray]:
    with source, closing(_batches(source, job.recipe)) as batches:
        return run_teachers(job, next(batches))[1]


Encoded = tuple[list[Row], dict[str, np.ndarray], dict[str, list[RowStatistics]]]


def run_teachers(job: _Job, batch: list[Picture]) -> Encoded:
    """Run every teacher on one batch; return rows, encoded parts (b ...) and figures per row."""
    image = torch.stack([image_tensor(picture.image) for picture in batch]).to(job.process.device)
    rows = [
        Row(key=p.key, view=View(x0=0, y0=0, x1=p.image.shape[1], y1=p.image.shape[0]))
        for p in batch
    ]
    parts: dict[str, np.ndarray] = {}
    statistics: dict[str, list[RowStatistics]] = {}
    for built in job.teachers:
        for name, answer in built(image, rows=rows).items():
            statistics[name] = _statistics(answer, job.cache.specs[name].kind)
            codec: Codec = job.cache.codecs[name]
            encoded = codec.encode(answer, job.cache.fitted.get(name, {}))
            for part, tensor in encoded.items():
                parts[f"{name}.{part}"] = tensor.cpu().numpy()
    return rows, parts, statistics


def _statistics(answer: torch.Tensor, kind: Kind) -> list[RowStatistics]:
    """Return the figures of each row of an answer (b c y x); one softmax is the largest copy."""
    flat = answer.flatten(1)
    share = torch.isfinite(flat).sum(1).double() / flat.shape[1]
    low, high, finite = torch.stack([*flat.aminmax(dim=1), share]).tolist()
    is_logits = kind == "logits"
    sure = _confidence(answer.float()).tolist() if is_logits else [None] * len(finite)
    return list(map(RowStatistics, low, high, finite, sure))


def _confidence(logits: torch.Tensor) -> torch.Tensor:
    """Return each row's mean over the cells of the likeliest class's probability, (b)."""
    several = logits.shape[1] > 1
    likeliest = logits.softmax(1).amax(1) if several else logits.abs().sigmoid()
    return likeliest.flatten(1).mean(1).clamp(max=1)  # rounding may pass 1 by 1e-7


class _Appender:
    """A thread that compresses and appends, so that the teacher never waits for the disk; its
    errors come back here.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._queue: queue.Queue[Encoded | None] = queue.Queue(maxsize=2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="appender", daemon=True)

    def __enter__(self) -> "_Appender":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def put(self, rows: list[Row], parts: dict[str, Any], statistics: dict[str, Any]) -> None:
        """Hand over one batch; raises the thread's error, if it had one."""
        self._raise()
        self._queue.put((rows, parts, statistics))

    def finish(self) -> None:
        """Wait until everything handed over has been appended."""
        self._queue.put(None)
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._append(*item)
                except BaseException as error:
                    self._error = error  # raised in the other thread by the next put or finish

    def _append(self, rows: list[Row], parts: dict[str, Any], statistics: dict[str, Any]) -> None:
        for i, row in enumerate(rows):
            figures = {name: column[i] for name, column in statistics.items()}
            self._writer.append(row, {name: part[i] for name, part in parts.items()}, figures)


def _provenance(job: _Job, rows: int, seconds: float) -> dict[str, Any]:
    return {
        "device": job.process.device_name,
        "providers": [built.provider for built in job.teachers],
        "gate": job.recipe.gate,
        "quality": job.quality,
        "seconds": round(seconds, 3),
        "rows_per_s": round(rows / seconds, 3),
        "versions": {
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
    row_bytes = sum(
        int(np.dtype(dtype).itemsize * np.prod(shape))
        for name, spec in cache.specs.items()
        for dtype, shape in cache.codecs[name].parts(spec.shape).values()
    )
    rows = max(cache.shard_rows(shard) for shard in cache.shard_ids())
    limit = recipe.run.shard_limit_gb * 1e9
    if row_bytes * rows > limit:
        process.print(
            f"warning: a teacher shard may take {row_bytes * rows / 1e9:.1f} GB"
            f" ({row_bytes / 1e6:.1f} MB a row before compression); pack the pictures with"
            f" --shard-rows {max(1, int(limit // row_bytes))} to avoid it"
        )


def _describe(specs: Sequence[TargetSpec]) -> str:
    return ", ".join(f"{s.name} {s.kind} {'x'.join(map(str, s.shape))} ({s.codec})" for s in specs)
