"""A student begins from that of another run: features first without labels, then the task."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stillroom.training.loop as loop
from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import file_sha256, read_json
from stillroom.losses import CrossEntropy, FeatureMSE
from stillroom.pictures.make import make_shards
from stillroom.recipe import Recipe
from stillroom.students.definitions import SmpStudent
from stillroom.students.pretrained import (
    BackboneUNetStudent,
    DeepLabV3LiteStudent,
    FastLiteStudent,
    FcnStudent,
)
from stillroom.training.setup import prepare

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def undrawn(monkeypatch) -> None:
    import stillroom.training.validate as validate

    monkeypatch.setattr(validate, "draw_curves", lambda *_: None)
    monkeypatch.setattr(validate, "draw_grid", lambda *_: None)


def named(recipe: Recipe, name: str, **changes: object) -> Recipe:
    return replace(recipe, epochs=1, run=replace(recipe.run, name=name), **changes)


def features(recipe: Recipe, shards: Path) -> Recipe:
    """Only what a teacher's feature says, on these pictures."""
    terms = (FeatureMSE(target="inner", tap="encoder.2", hidden=8),)
    return named(recipe, "features", terms=terms, data=replace(recipe.data, shards=str(shards)))


def task(recipe: Recipe, begin: Path | None, **changes: object) -> Recipe:
    """From labels alone."""
    student = replace(recipe.student, begin=begin and str(begin))
    return named(recipe, "task", terms=(CrossEntropy(),), student=student, **changes)


def unlabelled(world: Path, out: Path) -> Path:
    """The same pictures, packed without their masks."""
    train, val = (f"unlabelled:{world / split / 'images'}" for split in ("train", "val"))
    geometry = {"size": (32, 48), "fit": "letterbox", "format": "png", "shard_rows": 8}
    make_shards(train, out=out, val=val, val_share=None, **geometry)
    return out


def test_features_are_learned_without_labels_and_then_the_task_from_there(
    tiny_world, tiny_recipe, tmp_path, capsys
):
    alone = features(tiny_recipe, unlabelled(tiny_world, tmp_path / "unlabelled"))
    untrained = prepare(alone).distiller.student
    first = loop.train(alone)
    assert "no score" in capsys.readouterr().out
    student = load_file(first / "student.safetensors")
    assert not torch.equal(
        student["encoder.0.0.weight"], untrained.state_dict()["encoder.0.0.weight"]
    )
    recipe = task(tiny_recipe, first)
    start = prepare(recipe).distiller
    assert all(torch.equal(start.student.state_dict()[name], student[name]) for name in student)
    assert not start.projections
    run = loop.train(recipe)
    sha256 = file_sha256(first / "student.safetensors")
    assert f"the student begins from {first} (sha256 {sha256[:12]}" in capsys.readouterr().out
    about = {"run": str(first), "weights_sha256": sha256}
    assert read_json(run / "receipt.json")["begin"] == about
    shutil.rmtree(first)  # a resume needs it no more
    (run / "receipt.json").unlink()
    loop.train(replace(recipe, run=replace(recipe.run, resume=True)))
    assert read_json(run / "receipt.json")["begin"] == about


def test_projections_are_not_carried_over(tiny_world, tiny_recipe):
    first = loop.train(features(tiny_recipe, tiny_world / "shards"))
    recipe = features(tiny_recipe, tiny_world / "shards")
    fresh = prepare(named(recipe, "fresh")).distiller.projections.state_dict()
    begun = replace(recipe.student, begin=str(first))
    again = prepare(named(recipe, "again", student=begun)).distiller.projections.state_dict()
    assert fresh and all(torch.equal(again[name], fresh[name]) for name in fresh)


def test_another_student_a_run_that_is_not_finished_and_damage_are_refused(
    tiny_world, tiny_recipe, tmp_path
):
    with pytest.raises(UserError, match="not a finished run"):
        prepare(task(tiny_recipe, tmp_path / "nowhere"))
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_world / "teacher", teacher)
    prepare(task(tiny_recipe, teacher))
    wider = replace(tiny_recipe, student=replace(tiny_recipe.student, width=6, depth=1))
    with pytest.raises(UserError, match="cannot begin from it") as refused:
        prepare(task(wider, teacher))
    assert (refused.value.found, refused.value.wanted) == (
        "depth = 2, width = 4",
        "depth = 1, width = 6",
    )
    data = bytearray((teacher / "student.safetensors").read_bytes())
    data[-1] ^= 1
    (teacher / "student.safetensors").write_bytes(data)
    with pytest.raises(DamageError, match=r"not what student\.json names"):
        prepare(task(tiny_recipe, teacher))


PRETRAINED = (
    BackboneUNetStudent(backbone="resnet50", weights="imagenet", begin="runs/first"),
    FastLiteStudent(weights="absent.pth", begin="runs/first"),
    FcnStudent(weights="voc", begin="runs/first"),
    DeepLabV3LiteStudent(weights="voc", begin="runs/first"),
)


@pytest.mark.parametrize("student", PRETRAINED, ids=lambda student: type(student).__name__)
def test_one_that_begins_from_a_run_fetches_and_reads_no_weights(monkeypatch, student):
    import stillroom.students.pretrained as pretrained

    monkeypatch.setattr(pretrained, "fetch", lambda *_: pytest.fail("it downloads"))
    student.prefetch()
    student.build()
    again = replace(student, begin=None)
    with pytest.raises((pytest.fail.Exception, UserError)):
        again.build()


def test_a_student_that_begins_from_a_run_needs_no_other_weights(monkeypatch):
    import stillroom.students.definitions as definitions

    monkeypatch.setattr(definitions, "prefetch", lambda _: pytest.fail("it downloads"))
    begun = SmpStudent(encoder="tu-mobilenetv2_035", weights="imagenet", begin="runs/first")
    begun.prefetch()
    begun.build()
    with pytest.raises(pytest.fail.Exception):
        replace(begun, begin=None).prefetch()
