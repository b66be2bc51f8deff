"""What codecs cost on rows that teachers answered: each writes a shard of its own, which is read
back, decoded and thrown away.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import default_collate

from stillroom.cache.folder import Cache, claim_cache
from stillroom.cache.identity import describe_target, make_identity
from stillroom.cache.row_table import row_order
from stillroom.codecs import parse_codec
from stillroom.errors import UserError
from stillroom.extraction.encode import RowPicture, encode
from stillroom.planning.arithmetic import CodecCost
from stillroom.planning.measure_teachers import Answers, wait_for
from stillroom.recipe import Recipe, views_identity
from stillroom.signals import raise_if_stopped
from stillroom.types import ShardId, TargetSpec

_SHARD = ShardId("train", 0)
_MEASURED_ROWS = 16
_SHARD_ROUNDS = 4
_ROUNDS = 3  # of what is read and decoded; the first warms up
_FEATURES = ("float16", "int8", "stochastic:0.3", "stochastic:1.0", "stochastic:6.0")
_LOGITS = ("float16", "logits8")


def candidates(recipe: Recipe, spec: TargetSpec) -> tuple[str, ...]:
    """Return the codecs that are tried for a target, the recipe's own among them; one that is right
    on average only where every term that reads it is linear in it.
    """
    tried = _FEATURES if spec.kind == "features" else _LOGITS
    is_linear = _is_linear(recipe, spec.name)
    wanted = [text for text in tried if is_linear or not parse_codec(text).is_noisy]
    return tuple(dict.fromkeys((spec.codec, *wanted)))


def measure_codecs(
    folder: Path, recipe: Recipe, answers: Answers, device: str, stop: threading.Event
) -> tuple[dict[str, dict[str, CodecCost]], list[str]]:
    """Return what each candidate costs, by target and codec, and in words which ones could not keep
    the rows. Raises UserError where the recipe's own could not, Stopped, and OSError.
    """
    found: dict[str, dict[str, CodecCost]] = {}
    notes = []
    for spec in answers.specs:
        costs = found[spec.name] = {}
        if spec.kind == "features" and not _is_linear(recipe, spec.name):
            notes.append(
                f"a term that reads {spec.name} is not linear in it: no stochastic codec is tried"
            )
        for text in candidates(recipe, spec):
            raise_if_stopped(stop, "codecs were being measured; what they wrote is gone")
            one = replace(spec, codec=text)
            try:
                costs[text] = _measure(folder / f"{spec.name}-{text}", recipe, one, answers, device)
            except UserError as error:
                if text == spec.codec:
                    raise
                notes.append(f"{spec.name} cannot be kept as {text}: {error.what}")
    return found, notes


def measure_shard(
    folder: Path, recipe: Recipe, answers: Answers, device: str, stop: threading.Event
) -> float:
    """Return the seconds that a shard takes besides its rows: its folder is made, flushed, read
    back and named. It has one row of all targets, as the recipe keeps them.
    """
    seconds = []
    fitted = _fitted(answers.specs, answers.targets, device)
    outputs = {name: target[-1:].to(device) for name, target in answers.targets.items()}
    for turn in range(_SHARD_ROUNDS):
        raise_if_stopped(stop, "codecs were being measured; what they wrote is gone")
        cache = _new_cache(folder / f"shard-{turn}", recipe, answers.specs, 1)
        cache.publish_fitted(fitted)
        batch = encode(cache, answers.kept[-1:], outputs)
        (row,) = batch.each()
        began = time.perf_counter()
        with cache.writer(_SHARD) as writer:
            writer.append(*row)
            writer.publish({})
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])  # the first one imports


def _is_linear(recipe: Recipe, name: str) -> bool:
    """Return whether every term that reads a target is linear in it."""
    readers = [term.needs for term in recipe.terms if term.needs.target == name]
    return all(needs.is_linear for needs in readers)


def _measure(
    folder: Path, recipe: Recipe, spec: TargetSpec, answers: Answers, device: str
) -> CodecCost:
    """Keep some of the rows with a codec that is fitted on the others, if there are any."""
    name, target = spec.name, answers.targets[spec.name]
    num_rows = min(_MEASURED_ROWS, max(1, len(target) // 2))
    order = sorted(range(num_rows), key=lambda i: row_order(answers.kept[i][0]))
    batch, measured = [answers.kept[i] for i in order], target[order]
    others = target[num_rows:] if num_rows < len(target) else measured
    cache = _new_cache(folder, recipe, (spec,), num_rows)
    began = time.perf_counter()
    fitted = _fitted((spec,), {name: others}, device)
    fit_s = time.perf_counter() - began
    cache.publish_fitted(fitted)
    encode_ms, write_ms, publish_ms = _write(cache, name, batch, measured, recipe, device)
    read_ms, decode_ms, decoded = _read(cache, name, recipe.micro_batch, device)
    off = (decoded - measured).square().sum(dtype=torch.float64)
    away = measured - measured.mean((0, 2, 3), keepdim=True)
    return CodecCost(
        row_bytes=cache.shard_bytes(_SHARD) / num_rows,
        error=float(off / away.square().sum(dtype=torch.float64).clamp_min(1e-30)),
        encode_ms=encode_ms,
        write_ms=write_ms,
        publish_ms=publish_ms,
        read_ms=read_ms,
        decode_ms=decode_ms,
        fit_ms=1e3 * fit_s / len(others) if cache.codecs[name].needs_fit else None,
    )


def _new_cache(folder: Path, recipe: Recipe, specs: Sequence[TargetSpec], num_rows: int) -> Cache:
    """Return a cache of one shard of these targets."""
    shard = {"split": _SHARD.split, "number": _SHARD.number, "rows": num_rows, "pictures": "0" * 64}
    targets = {spec.name: describe_target(spec, {}) for spec in specs}
    identity = make_identity(
        pictures={"digest": "0" * 64, "shards": [shard]},
        geometry=specs[0].shape[1:],
        views=views_identity(recipe),
        targets=targets,
        calibration=[],
        body=recipe.body,
    )
    return claim_cache(folder, "plan", identity)


def _fitted(
    specs: Sequence[TargetSpec], targets: Mapping[str, Float[Tensor, "n _ _ _"]], device: str
) -> dict[str, dict[str, Tensor]]:
    codecs = {spec.name: parse_codec(spec.codec) for spec in specs}
    return {
        name: codec.fit(row.to(device) for row in targets[name].split(1))
        for name, codec in codecs.items()
        if codec.needs_fit
    }


def _write(
    cache: Cache,
    name: str,
    batch: list[RowPicture],
    target: Float[Tensor, "n _ _ _"],
    recipe: Recipe,
    device: str,
) -> tuple[float, float, float]:
    """Return ms a row of encoding (wall), of writing and of publishing (one core)."""
    encode_s: list[float] = []
    write_s: list[float] = []
    size = recipe.micro_batch
    with cache.writer(_SHARD) as writer:
        for first in range(0, len(batch), size):
            some, values = batch[first : first + size], target[first : first + size].to(device)
            if not encode_s:
                encode(cache, some, {name: values})  # warms up
            began = time.perf_counter()
            kept = encode(cache, some, {name: values})
            encode_s += [(time.perf_counter() - began) / len(some)] * len(some)
            for row in kept.each():
                began = time.thread_time()
                writer.append(*row)
                write_s.append(time.thread_time() - began)
        began = time.thread_time()
        writer.publish({})
        publish_s = time.thread_time() - began
    return 1e3 * median(encode_s), 1e3 * median(write_s), 1e3 * publish_s / len(batch)


def _read(
    cache: Cache, name: str, size: int, device: str
) -> tuple[float, float, Float[Tensor, "n _ _ _"]]:
    """Return ms a row of reading and of decoding, and what was decoded (on the CPU)."""
    read_s, decode_s, decoded = [], [], []
    with cache.reader(_SHARD) as reader:
        for turn in range(_ROUNDS):
            for first in range(0, len(reader), size):
                rows = range(first, min(first + size, len(reader)))
                began = time.thread_time()
                parts = default_collate([reader.read(i) for i in rows])
                read = time.thread_time() - began
                decode, values = _timed_decode(cache, parts, name, device)
                if turn:
                    read_s.append(read / len(rows))
                    decode_s.append(decode / len(rows))
                else:
                    decoded.append(values.cpu())
    return 1e3 * median(read_s), 1e3 * median(decode_s), torch.cat(decoded)


def _timed_decode(
    cache: Cache, parts: dict[str, Tensor], name: str, device: str
) -> tuple[float, Float[Tensor, "b _ _ _"]]:
    """Decode on the device, on a CPU with one thread, and wait for it."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        began = time.perf_counter()
        values = cache.decode(parts, device)[name]
        wait_for(device)
        return time.perf_counter() - began, values
    finally:
        torch.set_num_threads(threads)
