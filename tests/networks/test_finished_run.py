"""A run's student is built only as large as its weights, whatever its maker builds and drops."""

from pathlib import Path

import pytest
import torch

from stillroom.errors import DamageError
from stillroom.jsonfile import read_json, write_json
from stillroom.networks.finished_run import load_run
from stillroom.students.definitions import SmpStudent, Student, UNetStudent
from stillroom.training.checkpoint import save_student

SMALL = (16, 8, 8, 8, 8)
STUDENTS = (
    UNetStudent(width=4, depth=2, classes=2),
    SmpStudent(encoder="tu-mobilenetv2_035", decoder_channels=SMALL),  # timm drops a head
    SmpStudent(encoder="mit_b0", decoder_channels=SMALL),  # computes while it is built
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
    ],
)
def test_a_network_larger_than_its_weights_is_refused(student, field, value, tmp_path):
    folder, _ = saved(tmp_path / "run", student)
    about = read_json(folder / "student.json")
    about["network"][field] = value
    write_json(folder / "student.json", about)
    with pytest.raises(DamageError, match="more parameters than its weights"):
        load_run(folder)
