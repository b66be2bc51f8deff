"""What a cache must agree on: which pictures, which teachers, which views, kept how."""

from collections.abc import Sequence
from typing import Any

import torch

from stillroom.cache.folder import make_identity
from stillroom.errors import UserError
from stillroom.pictures.dataset import PictureSet
from stillroom.recipe import Recipe, teacher_identities
from stillroom.teachers.protocol import BuiltTeacher, TeacherConfig
from stillroom.types import TargetSpec


def pictures_identity(pictures: PictureSet) -> dict[str, Any]:
    """Return the digest of a data set and of each of its shards, as identity.json wants it."""
    shards = [
        {"split": s.split, "number": s.number, "rows": s.rows, "pictures": s.pictures}
        for s in pictures.shards
    ]
    return {"digest": pictures.digest, "shards": shards}


def probe(
    config: TeacherConfig,
    built: BuiltTeacher,
    size: tuple[int, int],
    codecs: dict[str, str],
    device: str,
) -> tuple[TargetSpec, ...]:
    """Run a teacher on one grey picture of `size` (h, w) and return what it makes."""
    answers = built(torch.full((1, 3, *size), 0.5, device=device))
    specs = []
    for name, kind in config.targets.items():
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
                codec=codecs.get(name, "float16"),
            )
        )
    return tuple(specs)


def compose(recipe: Recipe, pictures: PictureSet, specs: Sequence[TargetSpec]) -> dict[str, Any]:
    """Return the body of identity.json; `specs` are all targets of its teachers."""
    assert pictures.geometry is not None
    teachers = teacher_identities(recipe, with_files=True)
    targets = {
        spec.name: {
            "teacher": teachers[spec.name],
            "shape": list(spec.shape),
            "stride": spec.stride,
            "kind": spec.kind,
            "codec": spec.codec,
        }
        for spec in specs
    }
    splits = dict.fromkeys(shard.split for shard in pictures.shards)
    return make_identity(
        pictures=pictures_identity(pictures),
        geometry=pictures.geometry,
        views={split: {"count": 1, "kind": "whole"} for split in splits},
        targets=targets,
        calibration=[],
        body=recipe.body,
    )
