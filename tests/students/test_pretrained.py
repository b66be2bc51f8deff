"""First weights from torchvision and from files: strictly, or as far as they fit, which is told."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from stillroom.errors import UserError
from stillroom.students.definitions import Student
from stillroom.students.pretrained import (
    BackboneUNetStudent,
    DeepLabV3LiteStudent,
    FastLiteStudent,
    FcnStudent,
)

# What torchvision's local cache calls the weights, and what they fill.
DOWNLOADS = (
    (BackboneUNetStudent(backbone="resnet50", weights="imagenet"), "resnet50-0676ba61.pth"),
    (DeepLabV3LiteStudent(weights="imagenet"), "mobilenet_v3_large-8738ca79.pth"),
    (DeepLabV3LiteStudent(weights="voc"), "deeplabv3_mobilenet_v3_large-fc3c493d.pth"),
    (FcnStudent(classes=3, weights="imagenet"), "resnet50-0676ba61.pth"),
    (FcnStudent(weights="voc"), "fcn_resnet50_coco-1167a1af.pth"),
)


def whole(file: str) -> dict[str, torch.Tensor]:
    """Weights of torchvision's own network, as its file has them."""
    torch.manual_seed(5)
    make = {
        "res": models.resnet50,
        "mob": models.mobilenet_v3_large,
        "dee": models.segmentation.deeplabv3_mobilenet_v3_large,
        "fcn": models.segmentation.fcn_resnet50,
    }[file[:3]]
    segments = {"weights_backbone": None, "aux_loss": True} if file[:3] in ("dee", "fcn") else {}
    return make(weights=None, **segments).state_dict()


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's local cache, which is empty; no connection."""

    def fail(*args: object, **options: object) -> None:
        raise OSError("no connection")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(("student", "file"), DOWNLOADS, ids=str)
def test_downloaded_weights_are_in_the_built_student(checkpoints, student, file):
    state = whole(file)
    # as torchvision's older files: without BatchNorm's counter
    state = {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(state, checkpoints / file)
    student.prefetch()
    network = student.build()
    part = "encoder" if isinstance(student, BackboneUNetStudent) else "backbone"
    prefixes = ("backbone.", "features.", "")
    for name, value in network.get_submodule(part).state_dict().items():
        if not name.endswith("num_batches_tracked"):
            stored = next(state[p + name] for p in prefixes if p + name in state)
            assert torch.equal(value, stored), name
    if student == FcnStudent(weights="voc"):
        assert torch.equal(network.classifier[4].weight, state["classifier.4.weight"])
        assert torch.equal(network.aux_classifier[4].bias, state["aux_classifier.4.bias"])


@pytest.mark.parametrize(("student", "file"), DOWNLOADS, ids=str)
def test_weights_that_cannot_be_had_are_a_clear_error(checkpoints, student, file):
    for act in (student.prefetch, student.build):
        with pytest.raises(UserError, match=r"could not be downloaded(.|\n)*--student\.weights"):
            act()


def test_a_torchvision_file_of_vgg16_fills_the_encoder_strictly(tmp_path):
    trunk = BackboneUNetStudent().build().encoder.state_dict()
    state = {f"features.{name}": value for name, value in trunk.items()}
    state["classifier.6.bias"] = torch.zeros(1000)
    path = tmp_path / "vgg16.pth"
    torch.save(state, path)
    found = BackboneUNetStudent(weights=str(path)).build().encoder.state_dict()
    assert all(torch.equal(value, trunk[name]) for name, value in found.items())
    del state["features.28.bias"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"1 missing: 28\.bias(.|\n)*25 fit"):
        BackboneUNetStudent(weights=str(path)).build()


@pytest.mark.parametrize("student", [FastLiteStudent(width=0.1), FcnStudent(classes=1, aux=False)])
def test_a_file_of_the_whole_network_is_loaded_strictly(tmp_path, student: Student):
    first = student.build()
    save_file(first.state_dict(), tmp_path / "a.safetensors")
    fields = {"weights": str(tmp_path / "a.safetensors")}
    again = type(student)(**options(student), **fields).build().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.state_dict().items())
    with pytest.raises(UserError, match="of another shape: "):
        type(student)(**options(student) | {"classes": 5}, **fields).build()


def options(student: Student) -> dict:
    named = student.architecture()
    return {name: named[name] for name in ("width", "aux", "classes") if name in named}


def test_a_partial_load_takes_what_fits_and_says_what_did(tmp_path):
    first = FastLiteStudent(width=0.1, classes=4).build()
    state = first.state_dict()
    state["other.weight"] = torch.zeros(3)
    path = tmp_path / "a.pth"
    torch.save(state, path)
    network = FastLiteStudent(width=0.1, classes=7, weights=str(path), partial=True).build()
    found = network.state_dict()
    head = {"segmentation_head.weight", "segmentation_head.bias"}
    assert all(torch.equal(found[name], state[name]) for name in found if name not in head)
    assert found["segmentation_head.weight"].shape[0] == 7
    total = len(found)
    matched = f"{path}: {total - 2} of {total} tensors matched: encoder.0.0.0.weight, "
    assert network.report.startswith(matched)
    assert (
        "; 2 keep their first values: segmentation_head.weight, segmentation_head.bias;"
        " 3 of the file are not used: segmentation_head.weight, segmentation_head.bias,"
        " other.weight" in network.report
    )


def test_a_partial_load_knows_torchvisions_names_of_the_backbone(tmp_path):
    path = tmp_path / "resnet50.pth"
    state = models.resnet50(weights=None).state_dict()
    torch.save(state, path)
    network = FcnStudent(classes=2, weights=str(path), partial=True).build()
    assert torch.equal(network.backbone["conv1"].weight, state["conv1.weight"])
    num = len(network.backbone.state_dict())
    assert f": {num} of {len(network.state_dict())} tensors matched: backbone." in network.report
    assert "2 of the file are not used: fc.weight, fc.bias" in network.report


def test_a_file_of_which_nothing_fits_is_refused_even_in_part(tmp_path):
    torch.save({"something.weight": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"nothing in .*a\.pth fits the network"):
        FastLiteStudent(width=0.1, weights=f"{tmp_path}/a.pth", partial=True).build()


@pytest.mark.parametrize(
    ("kind", "weights"),
    [(FastLiteStudent, None), (BackboneUNetStudent, "imagenet"), (FcnStudent, "voc")],
)
def test_only_a_file_can_be_loaded_in_part(kind, weights):
    with pytest.raises(UserError, match="only a weights file can be loaded in part"):
        kind(weights=weights, partial=True)
