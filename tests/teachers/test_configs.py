"""Teacher configs are plain values: light to import, and recognisable without their files."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import write_json
from stillroom.teachers.configs import (
    FcnTeacher,
    MissingTeacherError,
    OnnxTeacher,
    RunTeacher,
    SmpTeacher,
)
from stillroom.teachers.own_configs import TorchTeacher

ONNX = OnnxTeacher(target="detector", path="a.onnx", tensor="inner", kind="features")
SMP = SmpTeacher(
    target="person", path="a.pth", encoder="resnet18", classes=2, taps=(("feature", "encoder.3"),)
)
RUN = RunTeacher(target="person", path="run", taps=(("feature", "decoder.0"),))
FCN = FcnTeacher(target="voc", taps=(("middle", "layer3"),))
OWN = TorchTeacher(target="own", factory="mine.py:build")
ONNX_CHANGES = (
    {"tensor": "other"},
    {"kind": "logits"},
    {"size": (32, 32)},
    {"channels": "BGR"},
    {"scale": 255.0},
    {"mean": (0.5, 0.5, 0.5)},
    {"std": (0.5, 0.5, 0.5)},
    {"tensors": (("more", "other"),)},
)
OWN_CHANGES = (
    {"factory": "mine.py:other"},
    {"target": None, "outputs": (("own", "logits"), ("inner", "stem"))},
    *ONNX_CHANGES[3:7],
    {"outputs": (("inner", "stem"),)},
)
FCN_CHANGES = (
    {"target": "other"},
    {"taps": (("middle", "layer2"),)},
    {"weights": "a.pth"},
    {"weights": None},
    {"classes": 2},
    {"aux": False},
    {"mean": (0.5, 0.5, 0.5)},
    {"std": (0.5, 0.5, 0.5)},
)
ALL = pytest.mark.parametrize("teacher", [ONNX, SMP, RUN], ids=lambda t: type(t).__name__)


def test_importing_and_identifying_loads_nothing_heavy():
    code = (
        "import sys; from stillroom.teachers import configs, own_configs\n"
        "configs.OnnxTeacher(target='a', path='no', kind='logits').identity(False)\n"
        "configs.SmpTeacher(target='a', path='no', encoder='resnet18').identity(False)\n"
        "configs.RunTeacher(target='a', path='no').identity(False)\n"
        "configs.FcnTeacher(target='a').identity(False)\n"
        "heavy = {'onnx', 'onnxruntime', 'timm', 'segmentation_models_pytorch', 'torchvision'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "print(sorted(m[19:] for m in sys.modules if m.startswith('stillroom.teachers.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[]",
        "['configs', 'fields', 'files', 'own_configs', 'protocol']",
    ]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def files(tmp_path, make_onnx):
    """What the three teachers need on disk; the bytes of weights do not matter to an identity."""
    make_onnx.save_segmenter(tmp_path / "a.onnx")
    (tmp_path / "a.pth").write_bytes(b"weights")
    (tmp_path / "run").mkdir()
    weights = tmp_path / "run" / "student.safetensors"
    save_file({"a": torch.zeros(1)}, weights)
    about = {"network": {"name": "unet", "width": 4}, "weights_sha256": sha256(weights)}
    write_json(tmp_path / "run" / "student.json", about)
    return tmp_path


@ALL
def test_the_identity_without_files_is_part_of_the_identity_with(teacher, files):
    without = teacher.identity(with_files=False)
    full = dataclasses.replace(teacher, path=str(files / teacher.path)).identity()
    assert without.keys() < full.keys()
    assert {name: full[name] for name in without} == without
    assert json.loads(json.dumps(full)) == full


@ALL
def test_the_identity_does_not_depend_on_where_the_files_lie(teacher, files):
    elsewhere = dataclasses.replace(teacher, path="/nowhere")
    assert elsewhere.identity(False) == teacher.identity(False)


@ALL
def test_a_missing_file_is_named_with_the_flag(teacher, tmp_path):
    lost = dataclasses.replace(teacher, path=str(tmp_path / "lost"))
    for act in (lost.identity, lambda: lost.build("cpu")):
        with pytest.raises(UserError, match=r"lost(.|\n)*--teachers\.N\.path"):
            act()


@pytest.mark.parametrize(
    ("teacher", "changes"),
    [(ONNX, ONNX_CHANGES), (OWN, OWN_CHANGES), (FCN, FCN_CHANGES)],
)
def test_every_field_that_changes_the_answer_changes_the_identity(teacher, changes):
    changed = [dataclasses.replace(teacher, **change).identity(False) for change in changes]
    identities = [teacher.identity(False), *changed]
    assert all(identities.count(identity) == 1 for identity in identities)


def test_weights_and_architecture_are_in_the_identity(files):
    smp = dataclasses.replace(SMP, path=str(files / "a.pth")).identity()
    assert smp["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert smp["architecture"]["encoder"] == "resnet18"
    fcn = dataclasses.replace(FCN, weights=str(files / "a.pth"))
    full = fcn.identity()
    assert full["weights_sha256"] == smp["weights_sha256"]
    assert full["architecture"]["classes"] == 21
    assert {name: full[name] for name in fcn.identity(False)} == fcn.identity(False)
    with pytest.raises(MissingTeacherError, match=r"lost(.|\n)*--teachers\.N\.weights"):
        dataclasses.replace(FCN, weights="lost").identity()
    run = dataclasses.replace(RUN, path=str(files / "run")).identity()
    assert run["weights_sha256"] == sha256(files / "run" / "student.safetensors")
    assert run["architecture"] == {"name": "unet", "width": 4}


def test_the_factory_and_the_weights_of_ones_own_module_are_in_the_identity(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('never run')")
    (tmp_path / "a.pth").write_bytes(b"weights")
    teacher = dataclasses.replace(OWN, factory=f"{tmp_path}/mine.py:build")
    assert teacher.identity(False) == OWN.identity(False)
    full = teacher.identity()
    assert {name: full[name] for name in teacher.identity(False)} == teacher.identity(False)
    assert (full["factory_sha256"], full["weights_sha256"]) == (sha256(tmp_path / "mine.py"), None)
    loaded = dataclasses.replace(teacher, weights=str(tmp_path / "a.pth")).identity()
    assert loaded["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(MissingTeacherError, match=r"mine\.py(.|\n)*--teachers\.N\.factory"):
        OWN.identity()


def test_targets_have_the_kind_in_which_they_are_stored():
    assert ONNX.targets == {"detector": "features"}
    assert dataclasses.replace(ONNX, kind="probabilities").targets == {"detector": "logits"}
    assert SMP.targets == RUN.targets == {"person": "logits", "feature": "features"}


@pytest.mark.parametrize(
    ("teacher", "fields"),
    [
        (ONNX, {"target": "Bad name"}),
        (ONNX, {"std": (1.0, 0.0, 1.0)}),
        (ONNX, {"mean": (1.0, float("nan"), 1.0)}),
        (ONNX, {"scale": 0.0}),
        (ONNX, {"size": (0, 32)}),
        (ONNX, {"tensors": (("detector", "other"),)}),
        (SMP, {"taps": (("person", "encoder.3"),)}),
        (SMP, {"taps": (("x", "encoder.3"), ("x", "encoder.2"))}),
        (RUN, {"taps": (("../x", "encoder.3"),)}),
        (OWN, {"factory": "mine.py"}),
        (OWN, {"target": None}),
        (FCN, {"taps": (("voc", "layer3"),)}),
        (FCN, {"std": (1.0, 0.0, 1.0)}),
        (OWN, {"scale": -1.0}),
    ],
)
def test_impossible_fields_are_refused(teacher, fields):
    with pytest.raises(UserError):
        dataclasses.replace(teacher, **fields)


def test_a_damaged_description_of_a_run_is_damage(files):
    path = files / "run" / "student.json"
    teacher = dataclasses.replace(RUN, path=str(files / "run"))
    path.write_bytes(path.read_bytes().replace(b"unet", b"unit"))
    with pytest.raises(DamageError, match=r"student\.json"):
        teacher.identity()
    write_json(path, {"classes": ["a"]})
    with pytest.raises(DamageError, match="required field `network`"):
        teacher.identity()


def test_weights_that_are_not_those_of_the_run_are_no_teacher(files):
    save_file({"a": torch.ones(1)}, files / "run" / "student.safetensors")
    teacher = dataclasses.replace(RUN, path=str(files / "run"))
    with pytest.raises(DamageError, match=r"not what student\.json names"):
        teacher.identity()
    with pytest.raises(DamageError, match=r"not what student\.json names"):
        teacher.build("cpu")
