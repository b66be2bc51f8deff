"""Student configurations."""

import json
from pathlib import Path

import pytest
import torch

from stillroom.errors import UserError
from stillroom.networks.build import build_network
from stillroom.students.definitions import SmpStudent, Student, UNetStudent


@pytest.mark.parametrize(
    "student", [UNetStudent(width=4, depth=2), SmpStudent(decoder_channels=(32, 16, 8, 8, 4))]
)
def test_the_description_builds_the_same_network(student: Student):
    built = student.build()
    described = build_network(json.loads(json.dumps(student.architecture())))
    described.load_state_dict(built.state_dict())
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(built.eval()(image), described.eval()(image))


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
    assert UNetStudent().prefetch() is None


@pytest.mark.shared
def test_the_shared_weights_are_in_the_built_student(shared: Path):
    path = shared / "models" / "mobilenetv2_035_timm.pth"
    network = SmpStudent(weights=str(path), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).build()
    state = torch.load(path, weights_only=True)
    assert torch.equal(network.encoder.model.conv_stem.weight, state["conv_stem.weight"])
