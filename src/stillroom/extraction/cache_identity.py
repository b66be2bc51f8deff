"""What a cache must agree on: which pictures, which teachers, which views, kept how."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from stillroom.cache.find import find_caches
from stillroom.cache.folder import Cache
from stillroom.cache.identity import describe_target, make_identity
from stillroom.codecs import parse_codec
from stillroom.errors import UserError
from stillroom.extraction.calibrate import calibration_keys
from stillroom.jsonfile import digest
from stillroom.pictures.dataset import PictureSet
from stillroom.pictures.views import num_views
from stillroom.recipe import Recipe, teacher_identities, views_identity
from stillroom.teachers.protocol import BuiltTeacher
from stillroom.types import TargetSpec, whole_box


def pictures_identity(pictures: PictureSet, recipe: Recipe) -> dict[str, Any]:
    """Return the digest of a data set and of each of its shards, as identity.json wants it.

    `rows` are those of the cache, all regions and views; with regions every picture is asked.
    """
    shards = [
        {"split": s.split, "number": s.number, "rows": rows, "pictures": s.pictures}
        for s, rows in zip(pictures.shards, _num_rows(pictures, recipe), strict=True)
    ]
    return {"digest": pictures.digest, "shards": shards}


def _num_rows(pictures: PictureSet, recipe: Recipe) -> Iterator[int]:
    for shard in pictures.shards:
        if recipe.data.regions:
            if not (rows := recipe.rows_of(pictures.open(shard.id))):
                raise UserError(
                    f"no picture of shard {shard.id} of {pictures.path} names a box",
                    fix="leave out --data.regions, or pack the pictures that have boxes",
                )
            yield len(rows)
        else:
            yield shard.rows * num_views(recipe.views, shard.split)


def probe(
    recipe: Recipe, pictures: PictureSet, teachers: Sequence[BuiltTeacher], device: str
) -> tuple[TargetSpec, ...]:
    """Run the recipe's teachers on one grey picture, in the name of the last view of the first
    picture; return what they make.
    """
    size, codecs = recipe.size_of(pictures), recipe.codec
    rows = (row for shard in pictures.shards for row in recipe.rows_of(pictures.open(shard.id)))
    some = tuple(islice(rows, num_views(recipe.views, pictures.shards[0].split)))
    grey = torch.full((1, 3, *size), 0.5, device=device)
    boxes = None
    if recipe.data.regions is not None:  # all of the picture
        boxes = whole_box(size)
    answers: dict[str, Tensor] = {}
    for built in teachers:
        answers |= built(grey, rows=some[-1:], boxes=boxes)
    specs = []
    for name, kind in recipe.target_kinds().items():
        shape = tuple(answers[name].shape[1:])
        if len(shape) != 3:
            raise UserError(
                f"target {name!r} is no map",
                found=f"shape {shape}",
                wanted="channels x height x width",
            )
        specs.append(
            TargetSpec(
                name=name,
                shape=shape,
                stride=max(1, round(size[0] / shape[1])),
                kind=kind,
                codec=parse_codec(codecs.get(name, "float16")).text,
            )
        )
    return tuple(specs)


def compose(
    recipe: Recipe,
    pictures: PictureSet,
    teachers: Sequence[BuiltTeacher],
    specs: Sequence[TargetSpec],
) -> dict[str, Any]:
    """Return the body of identity.json; `specs` are all targets of the recipe's teachers."""
    made_by = teacher_identities(recipe, with_files=True)
    for config, built in zip(recipe.teachers, teachers, strict=True):
        for name in config.targets:
            made_by[name] |= built.identity
    targets = {spec.name: describe_target(spec, made_by[spec.name]) for spec in specs}
    fitted = any(parse_codec(spec.codec).needs_fit for spec in specs)
    return make_identity(
        pictures=pictures_identity(pictures, recipe),
        geometry=recipe.size_of(pictures),
        views=views_identity(recipe),
        targets=targets,
        calibration=list(calibration_keys(pictures)) if fitted else [],
        body=recipe.body,
    )


def existing_cache(recipe: Recipe, identity: dict[str, Any]) -> Cache | None:
    """Return the cache of this identity wherever it lies under run.cache."""
    wanted = digest(identity)
    caches = find_caches(recipe.run.place(recipe.run.cache))
    return next((cache for cache in caches if cache.fingerprint == wanted), None)
