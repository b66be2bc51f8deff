"""A run's student is built only as large as its weights, whatever its maker builds and drops."""

from pathlib import Path

import pytest
import torch

from stillroom.errors import DamageError
from stillroom.jsonfile import read_json, write_json
from stillroom.networks.finished_run import load_run
from stillroom.students.definitions import BinaryUNetStudent, SmpStudent, Student, UNetStudent
from stillroom.students.pretrained import (
    BackboneUNetStudent,
    DeepLabV3LiteStudent,
    FastLiteStudent,
    FcnStudent,
)
from stillroom.training.checkpoint import save_student

SMALL = (16, 8, 8, 8, 8)
STUDENTS = (
    UNetStudent(width=4, depth=2, classes=2),
    SmpStudent(encoder="tu-mobilenetv2_035", decoder_channels=SMALL),  # timm drops a head
    SmpStudent(encoder="mit_b0", decoder_channels=SMALL),  # computes while it is built
    BinaryUNetStudent(width=2, channels=3),
    FastLiteStudent(width=0.1, classes=3),
    BackboneUNetStudent(),
    FcnStudent(),
    DeepLabV3LiteStudent(),
)


def saved(folder: Path, student: Student) -> tuple[Path, torch.nn.Module]:
    network = student.build()
    save_student(folder, network, {"network": student.architecture()})
    return folder, network


@pytest.mark.parametrize("student", STUDENTS, ids=str)
def test_every_kind_of_student_comes_back_from_its_run(student, tmp_path):
    folder, network = saved(tmp_path / "run", student)
    found, _ = load_run(folder)
    wanted = network.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize(
    ("student", "field", "value"),
    [
        (STUDENTS[0], "width", 512),
        (STUDENTS[1], "decoder_channels", [512, 256, 128, 64, 64]),
        (STUDENTS[3], "width", 1024),
        (STUDENTS[4], "width", 16.0),
        (STUDENTS[7], "classes", 4096),
    ],
)
def test_a_network_larger_than_its_weights_is_refused(student, field, value, tmp_path):
    folder, _ = saved(tmp_path / "run", student)
    about = read_json(folder / "student.json")
    about["network"][field] = value
    write_json(folder / "student.json", about)
    with pytest.raises(DamageError, match="more parameters than its weights"):
        load_run(folder)
