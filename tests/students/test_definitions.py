"""Student configurations."""

import json
from pathlib import Path

import pytest
import torch

from stillroom.errors import UserError
from stillroom.networks.build import build_network
from stillroom.students.definitions import BinaryUNetStudent, SmpStudent, Student, UNetStudent
from stillroom.students.pretrained import (
    BackboneUNetStudent,
    DeepLabV3LiteStudent,
    FastLiteStudent,
    FcnStudent,
)

STUDENTS = (
    UNetStudent(width=4, depth=2),
    SmpStudent(decoder_channels=(32, 16, 8, 8, 4)),
    BinaryUNetStudent(width=2),
    BinaryUNetStudent(width=2, channels=3),
    FastLiteStudent(width=0.1, classes=3),
    BackboneUNetStudent(classes=3),
    BackboneUNetStudent(backbone="resnet50", classes=3),
    FcnStudent(classes=3, aux=False),
    DeepLabV3LiteStudent(classes=3),
)


@pytest.mark.parametrize("student", STUDENTS, ids=str)
def test_the_description_builds_the_same_network(student: Student):
    built = student.build()
    described = build_network(json.loads(json.dumps(student.architecture())))
    described.load_state_dict(built.state_dict())
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(built.eval()(image), described.eval()(image))
    assert isinstance(student, Student) and built(image).shape == (1, student.classes, 32, 32)


@pytest.mark.parametrize("student", STUDENTS, ids=str)
def test_the_exported_program_takes_any_batch_and_says_the_same(student: Student):
    network, image = student.build().eval(), torch.rand(2, 3, 32, 64)
    dynamic = {0: torch.export.Dim("b", min=1, max=64)}
    with torch.no_grad():
        program = torch.export.export(network, (image,), dynamic_shapes=(dynamic,)).module()
        torch.testing.assert_close(program(image[:1]), network(image[:1]))


def test_a_missing_weights_file_is_a_clear_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such weights file"):
        SmpStudent(weights=str(tmp_path / "none.pth")).build()


def test_imagenet_weights_that_cannot_be_had_are_a_clear_error():
    with pytest.raises(UserError, match="no imagenet weights"):
        SmpStudent(weights="imagenet").prefetch()
    with pytest.raises(UserError, match="no imagenet weights"):
        SmpStudent(weights="imagenet").build()


def test_nothing_is_fetched_for_random_weights():
    assert SmpStudent().prefetch() is None
    for student in STUDENTS:
        assert student.prefetch() is None


@pytest.mark.shared
def test_the_shared_weights_are_in_the_built_student(shared: Path):
    path = shared / "models" / "mobilenetv2_035_timm.pth"
    network = SmpStudent(weights=str(path), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).build()
    state = torch.load(path, weights_only=True)
    assert torch.equal(network.encoder.model.conv_stem.weight, state["conv_stem.weight"])
