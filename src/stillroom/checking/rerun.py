"""Runs the teachers again on some rows of a cache and compares with what is stored.

This finds what no checksum can: the right bytes of the wrong row.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.cache.folder import Cache
from stillroom.cache.identity import both_sides, differences, plain
from stillroom.cache.reader import ShardReader
from stillroom.cache.scrub import Problem, problem_of
from stillroom.errors import DamageError, UserError
from stillroom.extraction.encode import run_teachers
from stillroom.metrics import predict
from stillroom.pictures.dataset import PictureSet
from stillroom.pictures.pixels import require_pixels
from stillroom.pictures.rows import picture_of
from stillroom.progress_bar import progress_bar
from stillroom.recipe import Recipe, teacher_identities, views_identity
from stillroom.signals import raise_if_stopped, stop_on_signals
from stillroom.types import Kind, Row, ShardId

# What another device, library or batch size may add to the codec's error (onnxruntime promises no
# repeatability): of one value by the row's largest magnitude, and of the whole row (L2) by its own.
# Measured on three person networks, 8 pictures, CPU: 6e-6 and 2e-6 with other kernels; another
# picture's row 1.2 and 0.55 at least. Log-odds of probabilities are apart: at 1 - 2^-20 one unit in
# the last place is 0.06 of 13.9; an unoptimised graph moved them by 1.2e-2 and 1.0e-3.
PLAIN, LOG_ODDS = (1e-2, 1e-3), (5e-2, 1e-2)
# Rounding draws the same numbers for a row again, so it comes out differently only where another
# kernel moved a value over an edge: of the noise (L2) the root of what the values moved by, as a
# share of their distance to the grid's middle. Rows with numbers of their own are 2^(1/2) apart.
OTHER_NOISE = 0.2


@dataclass(kw_only=True)
class Compared:
    """What the rows of one target showed."""

    target: str
    kind: Kind
    tolerance: tuple[float, float]  # beyond the codec's bound: of one value, of a whole row
    num_rows: int = 0
    num_wrong: int = 0  # rows that are not what the teacher answers
    largest: float = 0.0  # |stored - answer| of any value
    allowed: float = 0.0  # bound and tolerance of that value
    relative: float = 0.0  # L2 of the error by L2 of the answer, of the worst row
    cosine: float = 1.0  # of the worst row
    num_agreeing: int = 0  # pixels of equal class, for logits
    num_pixels: int = 0

    def add(
        self,
        stored: Float[Tensor, "1 c y x"],
        answer: Float[Tensor, "1 c y x"],
        bound: Float[Tensor, "1 c y x"],
        again: Float[Tensor, "1 c y x"] | None,
    ) -> str | None:
        """Add a row, `bound` being its codec's and `again` the answer as that would keep it (None:
        not at all); return how it differs where that is too much.

        Where the bound is wide, another picture's row may be within it, but has other noise.
        """
        self.num_rows += 1
        if not bool(torch.isfinite(answer).all()):
            self.num_wrong += 1
            return "that is not finite"
        if again is None:
            self.num_wrong += 1
            return "which the codec would refuse"
        error = (stored - answer).abs()
        norm, off = float(answer.double().norm()), float(error.double().norm())
        relative, (one, whole) = off / max(norm, 1e-30), self.tolerance
        vectors = stored.double().flatten(), answer.double().flatten()
        cosine = float(torch.cosine_similarity(*vectors, dim=0)) if off else 1.0
        self.relative, self.cosine = max(self.relative, relative), min(self.cosine, cosine)
        spare, worst = one * float(answer.abs().max()), int(error.argmax())
        largest, allowed = float(error.flatten()[worst]), float(bound.flatten()[worst]) + spare
        if largest >= self.largest:
            self.largest, self.allowed = largest, allowed
        if self.kind == "logits":
            same = predict(stored) == predict(answer)
            self.num_agreeing += int(same.sum())
            self.num_pixels += same.numel()
        excess = (error - bound).clamp_min(0)
        drawn = (again - answer).double().norm()
        other = float((stored - again).double().norm())
        if (
            float(excess.max()) <= spare
            and float(excess.double().norm()) <= whole * norm
            and other <= whole * norm + OTHER_NOISE * float(drawn)
        ):
            return None
        self.num_wrong += 1
        return (
            f"largest error {largest:.3g} where {allowed:.3g} is allowed, relative {relative:.3g},"
            f" cosine {cosine:.4f}"
        )

    @property
    def agreement(self) -> float | None:
        """The share of pixels with the same class; None for features."""
        return self.num_agreeing / self.num_pixels if self.num_pixels else None

    def as_json(self) -> dict[str, Any]:
        """Return every figure by name."""
        return {
            "rows": self.num_rows,
            "rows_wrong": self.num_wrong,
            "max": self.largest,
            "max_allowed": self.allowed,
            "relative": self.relative,
            "cosine": self.cosine,
            "argmax_agreement": self.agreement,
        }

    def lines(self) -> list[str]:
        """Return the figures as text."""
        agreement = "" if self.agreement is None else f", argmax agreement {self.agreement:.5%}"
        return [
            f"{self.target}: {self.num_rows} rows compared, {self.num_wrong} wrong",
            f"  largest error {self.largest:.3g} (allowed there {self.allowed:.3g}), worst row:"
            f" relative {self.relative:.3g}, cosine {self.cosine:.7f}{agreement}",
        ]


def refuse_other_teachers(cache: Cache, recipe: Recipe, *, with_files: bool = True) -> None:
    """Raise UserError, with both sides, where the recipe's teachers and views did not make this
    cache.
    """
    wanted = plain(teacher_identities(recipe, with_files, cache.teachers))
    found = {name: entry["teacher"] for name, entry in cache.identity["targets"].items()}
    for name in found.keys() & wanted.keys():  # what is known only of a network that was built
        found[name] = {member: found[name].get(member) for member in wanted[name]}
    found["views"], wanted["views"] = cache.identity["views"], plain(views_identity(recipe))
    if different := differences(found, wanted):
        sides = both_sides(different)
        raise UserError(
            f"{cache.path} was not made by the teachers and views of recipe {recipe.name!r}",
            found=sides[0],
            wanted=sides[1],
            fix="give the recipe and the flags with which the cache was made",
        )


def draw(
    cache: Cache, shard_ids: Iterable[ShardId], count: int, seed: int, *, first_only: bool = False
) -> list[tuple[ShardId, int]]:
    """Return `count` rows of some shards (all, where there are fewer) in the cache's order; with
    `first_only` they are numbered among each shard's first views.
    """
    rows = []
    for id_ in shard_ids:
        num_rows = cache.shard_rows(id_) // (cache.num_views(id_.split) if first_only else 1)
        rows += [(id_, i) for i in range(num_rows)]
    return sorted(random.Random(seed).sample(rows, min(count, len(rows))))


def rerun(
    cache: Cache,
    recipe: Recipe,
    pictures: PictureSet,
    rows: Sequence[tuple[ShardId, int]],
    device: str,
) -> tuple[list[Compared], list[Problem]]:
    """Run the recipe's teachers on rows (of shards that are sound), one at a time, and compare.

    Raises UserError where the teachers are not the cache's, Stopped on SIGTERM.
    """
    refuse_other_teachers(cache, recipe)
    teachers = [config.build(device) for config in recipe.teachers]
    compared = {
        name: Compared(target=name, kind=spec.kind, tolerance=_tolerance(cache, name))
        for name, spec in cache.specs.items()
    }
    problems: list[Problem] = []
    with stop_on_signals() as stop:
        for shard_id, i in progress_bar(rows, unit="row", desc="rerun"):
            raise_if_stopped(stop, "the check is not finished")
            source = pictures.open(shard_id)
            with cache.reader(shard_id) as reader:
                row = reader.rows[i]
                try:
                    picture = source.read(source.index(row.key), labels=False)
                    looked = picture_of(picture, row, cache.geometry)
                    require_pixels(looked, row, reader.pixels[i], reader.provenance)
                except (DamageError, UserError) as error:  # no picture to ask the teachers about
                    problem = problem_of(error, shard_id, source.path)
                    problems.append(replace(problem, kind="pictures"))
                    continue
                outputs = run_teachers(teachers, [(row, looked)], device)
                answers = {name: target.cpu() for name, target in outputs.items()}
                for name, figures in compared.items():
                    answer = answers[name]
                    text = figures.add(
                        _stored(cache, reader, i, name),
                        answer,
                        cache.error_bound(name, answer),
                        _kept(cache, name, answer, row),
                    )
                    if text is not None:
                        what = (
                            f"shard {shard_id}, key {row.key} (row {i}), target {name}: not what"
                            f" the teacher answers for this picture: {text}"
                        )
                        path = cache.path / cache.shard_spec(shard_id).folder
                        found = Problem(kind="teacher", shard=shard_id, path=path, what=what)
                        problems.append(found)
    return list(compared.values()), problems


def _tolerance(cache: Cache, target: str) -> tuple[float, float]:
    entry = cache.identity["targets"][target]
    were_probabilities = entry["teacher"].get("kind") == "probabilities"
    return LOG_ODDS if were_probabilities and entry["kind"] == "logits" else PLAIN


def _kept(
    cache: Cache, name: str, answer: Float[Tensor, "1 c y x"], row: Row
) -> Float[Tensor, "1 c y x"] | None:
    """Return an answer as this row would keep it, None where its codec refuses it."""
    try:
        parts = cache.encode(name, answer, [row])
    except UserError:
        return None
    return cache.decode({f"{name}.{part}": value for part, value in parts.items()})[name]


def _stored(cache: Cache, reader: ShardReader, row: int, name: str) -> Float[Tensor, "1 c y x"]:
    parts = [part.name for part in cache.parts if part.name.partition(".")[0] == name]
    values = reader.read(row, parts)
    return cache.decode({part: torch.from_numpy(v)[None] for part, v in values.items()})[name]
