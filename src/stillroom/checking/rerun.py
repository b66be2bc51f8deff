"""Runs the teachers again on some rows of a cache and compares with what is stored.

This finds what no checksum can: the right bytes of the wrong row. Rows are drawn by a hash of
(seed, shard, row), so a larger draw contains a smaller one.
"""

import hashlib
import heapq
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from stillroom.cache.folder import Cache
from stillroom.cache.identity import both_sides, differences, plain
from stillroom.cache.reader import ShardReader
from stillroom.cache.scrub import Problem, problem_of
from stillroom.errors import DamageError, Stopped, UserError
from stillroom.extraction.encode import RowPicture, run_teachers
from stillroom.metrics import predict
from stillroom.pictures.dataset import PictureSet, PictureShard
from stillroom.pictures.rows import picture_of
from stillroom.recipe import Recipe, teacher_identities
from stillroom.signals import stop_on_signals
from stillroom.types import Kind, ShardId

# What another device, library or batch size may add to the codec's error (onnxruntime promises no
# repeatability): of one value by the row's largest magnitude, and of the whole row (L2) by its own.
# Measured on three person networks, 8 pictures, CPU: 6e-6 and 2e-6 with other kernels; another
# picture's row 1.2 and 0.55 at least. Log-odds of probabilities are apart: at 1 - 2^-20 one unit in
# the last place is 0.06 of 13.9; an unoptimised graph moved them by 1.2e-2 and 1.0e-3.
PLAIN, LOG_ODDS = (1e-2, 1e-3), (5e-2, 1e-2)
_DECADES = range(-8, 4)  # bins of the histogram: below 1e-8, ..., from 1e3 on


@dataclass(kw_only=True)
class Compared:
    """What the rows of one target showed; the histogram counts values by decade of their error."""

    target: str
    kind: Kind
    codec: str
    tolerance: tuple[float, float]  # beyond the codec's bound: of one value, of a whole row
    num_rows: int = 0
    num_values: int = 0
    num_exact: int = 0
    histogram: list[int] = field(default_factory=lambda: [0] * (len(_DECADES) + 1))
    largest: float = 0.0  # |stored - said| of any value
    allowed: float = 0.0  # bound and tolerance of that value
    num_beyond_codec: int = 0  # values whose error passes the codec's bound alone
    relative: float = 0.0  # L2 of the error by L2 of what was said, of the worst row
    cosine: float = 1.0  # of the worst row
    num_agreeing: int = 0  # pixels of equal class, for logits
    num_pixels: int = 0
    num_wrong: int = 0  # rows that are not what the teacher says

    def as_json(self) -> dict[str, Any]:
        """Return every figure by name."""
        names = ("below 1e-8", *(f"from 1e{decade}" for decade in _DECADES))
        return {
            "kind": self.kind,
            "codec": self.codec,
            "rows": self.num_rows,
            "rows_wrong": self.num_wrong,
            "tolerance": list(self.tolerance),
            "values": self.num_values,
            "values_exact": self.num_exact,
            "values_beyond_codec": self.num_beyond_codec,
            "histogram": dict(zip(names, self.histogram, strict=True)),
            "max": self.largest,
            "max_allowed": self.allowed,
            "relative": self.relative if math.isfinite(self.relative) else None,
            "cosine": self.cosine,
            "argmax_agreement": self.agreement,
        }

    @property
    def agreement(self) -> float | None:
        """The share of pixels with the same class; None for features."""
        return self.num_agreeing / self.num_pixels if self.num_pixels else None

    def lines(self) -> list[str]:
        """Return the figures as text."""
        lines = [
            f"{self.target}: {self.num_rows} rows, {self.num_values} values, kept as {self.codec}"
        ]
        names = [("exact", self.num_exact), ("below 1e-8", self.histogram[0])]
        names += [(f"1e{d:+d}..", n) for d, n in zip(_DECADES, self.histogram[1:], strict=True)]
        for name, count in names:
            if count:
                share = count / self.num_values
                lines.append(f"  |error| {name:>10} {share:8.3%} {'#' * math.ceil(40 * share)}")
        agreement = "" if self.agreement is None else f", argmax agreement {self.agreement:.5%}"
        lines.append(
            f"  max {self.largest:.3g} (allowed there {self.allowed:.3g}), worst row: relative"
            f" {self.relative:.3g}, cosine {self.cosine:.7f}{agreement}"
        )
        beyond = self.num_beyond_codec / max(1, self.num_values)
        one, row = self.tolerance
        verdict = "all rows are what the teacher says"
        if self.num_wrong:
            verdict = f"{self.num_wrong} of {self.num_rows} rows are NOT what the teacher says"
        lines.append(
            f"  {beyond:.3%} of the values are beyond the stated bound of {self.codec}; with a"
            f" tolerance of {one:g} (value) and {row:g} (row) {verdict}"
        )
        return lines


def refuse_other_teachers(cache: Cache, recipe: Recipe, *, with_files: bool = True) -> None:
    """Raise UserError, with both sides, where the recipe's teachers did not make this cache."""
    wanted = plain(teacher_identities(recipe, with_files, cache.teachers))
    found = {name: entry["teacher"] for name, entry in cache.identity["targets"].items()}
    if not with_files:  # then only what is known without their files can be compared
        for name in found.keys() & wanted.keys():
            found[name] = {member: found[name].get(member) for member in wanted[name]}
    if different := differences(found, wanted):
        sides = both_sides(different)
        raise UserError(
            f"{cache.path} holds what other teachers said than those of recipe {recipe.name!r}",
            found=sides[0],
            wanted=sides[1],
            fix="give the recipe and the flags with which the cache was made",
        )


def draw(
    cache: Cache, shard_ids: Collection[ShardId], count: int, seed: int
) -> list[tuple[ShardId, int]]:
    """Return `count` rows of some shards (all, where there are fewer) in the cache's order."""

    def ticket(place: tuple[ShardId, int]) -> bytes:
        return hashlib.sha256(f"{seed} {place[0]} {place[1]}".encode()).digest()

    places = ((shard, i) for shard in shard_ids for i in range(cache.shard_rows(shard)))
    return sorted(heapq.nsmallest(count, places, key=ticket))


def rerun(
    cache: Cache,
    recipe: Recipe,
    pictures: PictureSet,
    rows: Sequence[tuple[ShardId, int]],
    device: str,
) -> tuple[list[Compared], list[Problem]]:
    """Run the recipe's teachers on rows (of shards that are sound) and compare.

    Raises UserError where the teachers are not the cache's, Stopped on SIGTERM.
    """
    refuse_other_teachers(cache, recipe)
    teachers = [config.build(device) for config in recipe.teachers]
    compared = {
        name: Compared(
            target=name, kind=spec.kind, codec=spec.codec, tolerance=_tolerance(cache, name)
        )
        for name, spec in cache.specs.items()
    }
    problems: list[Problem] = []
    with stop_on_signals() as stop, tqdm(total=len(rows), unit="row", desc="rerun") as bar:
        for shard_id, places in groupby(rows, key=itemgetter(0)):
            numbers = [i for _, i in places]
            source = pictures.open(shard_id)
            with cache.reader(shard_id) as reader:
                for start in range(0, len(numbers), recipe.micro_batch):
                    if stop.is_set():
                        raise Stopped("told to stop", found="the check is not finished")
                    batch = numbers[start : start + recipe.micro_batch]
                    try:
                        looked = _pictures(source, reader, batch, cache.geometry)
                    except DamageError as error:
                        what = problem_of(error, shard_id, source.path).what
                        at = {"shard": shard_id, "path": source.path, "what": what}
                        problems.append(Problem(kind="pictures", **at))
                        continue
                    outputs = {
                        name: target.cpu()
                        for name, target in run_teachers(teachers, looked, device).items()
                    }
                    problems += _compare(cache, reader, batch, outputs, compared)
                    bar.update(len(batch))
    return list(compared.values()), problems


def _tolerance(cache: Cache, target: str) -> tuple[float, float]:
    entry = cache.identity["targets"][target]
    were_probabilities = entry["teacher"].get("kind") == "probabilities"
    return LOG_ODDS if were_probabilities and entry["kind"] == "logits" else PLAIN


def _pictures(
    source: PictureShard, reader: ShardReader, numbers: Iterable[int], size: tuple[int, int]
) -> list[RowPicture]:
    """The pictures of some rows, as their stored views say."""
    rows = [reader.rows[i] for i in numbers]
    pictures = [source.read(source.index(row.key), labels=False) for row in rows]
    return [(row, picture_of(p, row, size)) for row, p in zip(rows, pictures, strict=True)]


def _compare(
    cache: Cache,
    reader: ShardReader,
    numbers: Sequence[int],
    outputs: dict[str, Tensor],
    compared: dict[str, Compared],
) -> list[Problem]:
    problems = []
    for i, row in enumerate(numbers):
        for name, figures in compared.items():
            stored = _stored(cache, reader, row, name)
            text = _add(figures, stored, outputs[name][i : i + 1], cache)
            if text is not None:
                shard, key = reader.shard_id, reader.rows[row].key
                what = (
                    f"shard {shard}, key {key} (row {row}), target {name}: not what the teacher"
                    f" says of this picture: {text}"
                )
                problems.append(
                    Problem(kind="teacher", shard=shard, path=_folder(cache, shard), what=what)
                )
    return problems


def _folder(cache: Cache, shard_id: ShardId) -> Path:
    return cache.path / cache.shard_spec(shard_id).folder


def _stored(cache: Cache, reader: ShardReader, row: int, name: str) -> Float[Tensor, "1 c y x"]:
    parts = [part.name for part in cache.parts if part.name.partition(".")[0] == name]
    values = reader.read(row, parts)
    return cache.decode({part: torch.from_numpy(v)[None] for part, v in values.items()})[name]


def _add(
    figures: Compared,
    stored: Float[Tensor, "1 c y x"],
    outputs: Float[Tensor, "1 c y x"],
    cache: Cache,
) -> str | None:
    """Add a row to the figures of its target; say how it differs where that is too much."""
    figures.num_rows += 1
    if not bool(torch.isfinite(outputs).all()):
        figures.num_wrong += 1
        return "that is not finite"
    bound = cache.codecs[figures.target].error_bound(outputs, cache.fitted[figures.target])
    error = (stored - outputs).abs()
    norm, off = float(outputs.double().norm()), float(error.double().norm())
    relative = off / norm if norm else math.inf if off else 0.0
    both = norm * float(stored.double().norm())
    cosine = float((stored.double() * outputs).sum()) / both if both else float(norm == off == 0)
    _count(figures, stored, outputs, error, bound)
    figures.relative, figures.cosine = max(figures.relative, relative), min(figures.cosine, cosine)
    one, whole = figures.tolerance
    spare, worst = one * float(outputs.abs().max()), int(error.argmax())
    largest, allowed = float(error.flatten()[worst]), float(bound.flatten()[worst]) + spare
    if largest >= figures.largest:
        figures.largest, figures.allowed = largest, allowed
    excess = (error - bound).clamp_min(0)
    if float(excess.max()) <= spare and float(excess.double().norm()) <= whole * norm:
        return None
    figures.num_wrong += 1
    return (
        f"largest error {largest:.3g} where {allowed:.3g} is allowed, relative {relative:.3g},"
        f" cosine {cosine:.4f}"
    )


def _count(
    figures: Compared, stored: Tensor, outputs: Tensor, error: Tensor, bound: Tensor
) -> None:
    """Add the values of a row to the histogram, and its pixels to those that agree."""
    figures.num_values += error.numel()
    figures.num_exact += int((error == 0).sum())
    figures.num_beyond_codec += int((error > bound).sum())
    decades = error[error > 0].log10().floor().clamp(_DECADES[0] - 1, _DECADES[-1]).long()
    counts = torch.bincount(decades - (_DECADES[0] - 1), minlength=len(figures.histogram))
    figures.histogram = [a + b for a, b in zip(figures.histogram, counts.tolist(), strict=True)]
    if figures.kind == "logits":
        same = predict(stored) == predict(outputs)
        figures.num_agreeing += int(same.sum())
        figures.num_pixels += same.numel()
