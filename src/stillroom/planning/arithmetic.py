"""What a cache costs and when it has paid for itself: arithmetic on what one row costs.

A device works on rows while cores read, check and unpack the next ones, so the slower of the two
counts; where the device is some of the cores themselves, they have both to do. The disk is shared
by all GPUs and is read anew in every epoch: no part of a cache is taken to stay in memory.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

CLOSE = 1.05  # two totals whose ratio is below this are taken as equal
SPARE = 1.05  # of the disk, for rows that compress worse


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecCost:
    """What one target costs with one codec, per row."""

    row_bytes: float  # on disk, as the body writes it
    error: float  # squared error by squared distance from each channel's mean
    encode_ms: float  # on the device of stage 1, with the comparison of what was encoded
    write_ms: float  # of one core: compress and append
    publish_ms: float  # of one core: read back and compare, once a shard is complete
    read_ms: float  # of one core: read, check and decompress
    decode_ms: float  # of one core, or of the device where stage 2 has one
    fit_ms: float | None = None  # a calibration row, all cores; None = nothing is fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one row costs, measured or given; milliseconds unless named otherwise."""

    teacher_ms: float  # all teachers, pictures and targets on their device
    student_ms: float  # forward, backward and optimiser step, targets decoded
    teacher_picture_ms: float  # of one core: the picture as stage 1 reads it
    student_picture_ms: float  # of one core: picture, mask and augmentation as stage 2 reads them
    picture_bytes: float  # on disk
    write_gb_per_s: float  # all GPUs together
    read_gb_per_s: float
    shard_s: float  # what a shard takes besides its rows
    codecs: Mapping[str, Mapping[str, CodecCost]]  # by target and the codec's text
    read_targets: frozenset[str]  # targets that a term reads; stage 1 keeps all


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how long: the rows of both stages, the GPUs and their cores."""

    num_pictures: int  # of the training split, each once an epoch
    num_rows: int  # that stage 1 keeps: all views, and the validation split
    epochs: int
    num_shards: int = 0  # that stage 1 makes
    fit_rows: int = 0  # that the teachers are run on for each target whose codec is fitted
    gpus: int = 1
    cores: int = 1  # of each GPU
    readers: int = 1  # threads that read, of each GPU
    teacher_threads: int = 0  # cores that the teachers keep busy; 0 = their device is none of them
    student_threads: int = 0  # that the student does
    decode_on_cores: bool = True  # what was read is decoded there
    free_bytes: float = math.inf  # on the disk of the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What one choice of codecs comes to; times in seconds, of all GPUs together."""

    codecs: Mapping[str, str]
    disk_bytes: float
    fits: bool
    extraction_s: float
    cached_per_s: float
    online_per_s: float
    bound: str  # what cached training waits for: student, cores or disk
    cached_s: float  # extraction and all epochs
    online_s: float  # all epochs with the teachers in the step
    paid_epochs: float  # epochs after which the extraction is paid for; inf = it never is

    @property
    def pays(self) -> bool:
        """Whether the training is long enough for the extraction to be paid for."""
        return self.cached_s <= self.online_s


def make_line(costs: Costs, setting: Setting, codecs: Mapping[str, str]) -> Line:
    """Return what keeping each target with the codec named comes to."""
    chosen = {name: costs.codecs[name][text] for name, text in codecs.items()}
    cached_ms, bound = _cached_ms(costs, setting, chosen)
    online_ms = _online_ms(costs, setting)
    disk_bytes = setting.num_rows * sum(cost.row_bytes for cost in chosen.values())
    extraction_s = _extraction_s(costs, setting, chosen)
    epoch_s = [setting.num_pictures * ms / setting.gpus / 1e3 for ms in (cached_ms, online_ms)]
    saved_s = epoch_s[1] - epoch_s[0]
    return Line(
        codecs=codecs,
        disk_bytes=disk_bytes,
        fits=disk_bytes * SPARE <= setting.free_bytes,
        extraction_s=extraction_s,
        cached_per_s=1e3 * setting.gpus / cached_ms,
        online_per_s=1e3 * setting.gpus / online_ms,
        bound=bound,
        cached_s=extraction_s + setting.epochs * epoch_s[0],
        online_s=setting.epochs * epoch_s[1],
        paid_epochs=extraction_s / saved_s if saved_s > 0 else math.inf,
    )


def make_lines(costs: Costs, setting: Setting) -> list[Line]:
    """Return a line for every choice of codecs in which targets of equal candidates are kept alike;
    several taps of a teacher would otherwise make thousands.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, candidates in costs.codecs.items():
        groups.setdefault(tuple(candidates), []).append(name)
    lines = []
    for texts in itertools.product(*groups):
        pairs = zip(texts, groups.values(), strict=True)
        chosen = {name: text for text, names in pairs for name in names}
        lines.append(make_line(costs, setting, {name: chosen[name] for name in costs.codecs}))
    return lines


def recommend(lines: list[Line], own: Line, costs: Costs) -> Line:
    """Return the line to take: the recipe's own codecs, unless other ones save time or are the only
    ones that fit or pay; of these the quickest, and among equally quick ones the most exact.

    Where no line both fits and pays, the best of those that fit, or the smallest of all.
    """
    legal = [line for line in lines if line.fits and line.pays]
    quickest = min((line.cached_s for line in legal), default=math.inf)
    if own.fits and own.pays and own.cached_s <= CLOSE * quickest:
        return own
    if legal:
        close = [line for line in legal if line.cached_s <= CLOSE * quickest]
        return min(close, key=lambda line: (_error(line, costs), line.disk_bytes))
    fitting = [line for line in lines if line.fits]
    if fitting:
        return min(fitting, key=lambda line: line.cached_s)
    return min(lines, key=lambda line: line.disk_bytes)


def disk_for(line: Line, costs: Costs) -> float:
    """Return the GB/s at which the disk alone would let cached training be as fast as online."""
    pairs = line.codecs.items()
    read = [costs.codecs[name][text] for name, text in pairs if name in costs.read_targets]
    row_bytes = costs.picture_bytes + sum(cost.row_bytes for cost in read)
    return row_bytes * line.online_per_s / 1e9


def _error(line: Line, costs: Costs) -> float:
    return sum(costs.codecs[name][text].error for name, text in line.codecs.items())


def _extraction_s(costs: Costs, setting: Setting, chosen: Mapping[str, CodecCost]) -> float:
    """Return what stage 1 takes; every GPU fits the codecs for itself."""
    row_ms = _extraction_ms(costs, setting, chosen)
    teacher_ms = _overlap(
        costs.teacher_ms, costs.teacher_picture_ms, setting, setting.teacher_threads
    )
    fits = [cost.fit_ms + teacher_ms for cost in chosen.values() if cost.fit_ms is not None]
    shards_s = setting.num_shards * costs.shard_s
    made_s = (setting.num_rows * row_ms / 1e3 + shards_s) / setting.gpus
    return made_s + setting.fit_rows * sum(fits) / 1e3


def _extraction_ms(costs: Costs, setting: Setting, chosen: Mapping[str, CodecCost]) -> float:
    """Return what one row takes one GPU in stage 1.

    Teachers, readers, compressing threads and the publication of the shard before overlap; one
    thread flushes what was written, reads it back from the disk and compares.
    """
    device_ms = costs.teacher_ms + sum(cost.encode_ms for cost in chosen.values())
    publish_ms = sum(cost.publish_ms for cost in chosen.values())
    host_ms = costs.teacher_picture_ms + sum(cost.write_ms for cost in chosen.values()) + publish_ms
    row_bytes = sum(cost.row_bytes for cost in chosen.values())
    disk_ms = row_bytes / 1e6 * (1 / costs.write_gb_per_s + 1 / costs.read_gb_per_s)
    work_ms = _overlap(device_ms, host_ms, setting, setting.teacher_threads)
    return max(work_ms, publish_ms + disk_ms, setting.gpus * disk_ms)


def _cached_ms(
    costs: Costs, setting: Setting, chosen: Mapping[str, CodecCost]
) -> tuple[float, str]:
    """Return what one picture takes one GPU in stage 2, and what it waits for."""
    read = [cost for name, cost in chosen.items() if name in costs.read_targets]
    decode_ms = sum(cost.decode_ms for cost in read)
    host_ms = costs.student_picture_ms + sum(cost.read_ms for cost in read)
    device_ms = costs.student_ms
    if setting.decode_on_cores:
        host_ms += decode_ms
    else:
        device_ms += decode_ms
    work_ms = _overlap(device_ms, host_ms, setting, setting.student_threads)
    row_bytes = costs.picture_bytes + sum(cost.row_bytes for cost in read)
    disk_ms = setting.gpus * row_bytes / 1e6 / costs.read_gb_per_s
    if disk_ms > work_ms:
        return disk_ms, "disk"
    return work_ms, "cores" if work_ms > CLOSE * device_ms else "student"


def _online_ms(costs: Costs, setting: Setting) -> float:
    """Return what one picture would take one GPU with the teachers in the step."""
    threads = min(setting.student_threads, setting.teacher_threads)
    device_ms = costs.student_ms + costs.teacher_ms
    work_ms = _overlap(device_ms, costs.student_picture_ms, setting, threads)
    return max(work_ms, setting.gpus * costs.picture_bytes / 1e6 / costs.read_gb_per_s)


def _overlap(device_ms: float, host_ms: float, setting: Setting, threads: int) -> float:
    """Return what a row takes where cores read for a device that keeps `threads` of them busy."""
    shared_ms = (threads * device_ms + host_ms) / setting.cores
    return max(device_ms, host_ms / min(setting.cores, setting.readers), shared_ms)
