"""Weights from files: everything fits, or nothing is loaded."""

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from stillroom.errors import UserError
from stillroom.networks.build import load_encoder_weights, load_weights
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD
from stillroom.networks.smp import SmpNetwork
from stillroom.networks.unet import UNet

HALF = (0.5, 0.5, 0.5)


def unet(classes: int = 3) -> UNet:
    return UNet(4, 2, classes, HALF, HALF)


@pytest.mark.parametrize(
    "wrap", ["bare", "state_dict", "model_state_dict", "model.", "module.model.", "safetensors"]
)
def test_every_form_of_a_file_loads(tmp_path: Path, wrap: str):
    source, target = unet(), unet()
    state, path = source.state_dict(), tmp_path / "weights.pth"
    if wrap == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    elif wrap.endswith("."):
        torch.save({"state_dict": {f"{wrap}{name}": v for name, v in state.items()}}, path)
    else:
        torch.save(state if wrap == "bare" else {wrap: state, "epoch": 3}, path)
    said = load_weights(target, path)
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())
    dropped = f"{path}: {wrap!r} before each of {len(state)} names was dropped"
    assert said == (dropped if wrap.endswith(".") else "")


def test_a_name_without_the_prefix_of_all_others_is_refused(tmp_path: Path):
    path, state = tmp_path / "weights.pth", unet().state_dict()
    prefixed = {f"model.{name}": v for name, v in state.items()}
    for odd in ("loss.weight", "segmentation_head.weight"):
        torch.save({"state_dict": {**prefixed, odd: torch.zeros(3, 4, 1, 1)}}, path)
        with pytest.raises(UserError, match=f"1 unexpected: {odd}"):
            load_weights(unet(), path)


def test_a_misfit_lists_names_and_loads_nothing(tmp_path: Path):
    target = unet()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = unet(classes=5).state_dict()
    state["extra.weight"] = state.pop("encoder.0.0.weight")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError) as caught:
        load_weights(target, tmp_path / "weights.pth")
    message = str(caught.value)
    assert "1 missing: encoder.0.0.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "segmentation_head.weight: (5, 4, 1, 1) in the file, (3, 4, 1, 1)" in message
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


class _Trap:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple:
        return (print, ("ran",))


@pytest.mark.parametrize("content", ["trap", "text", "numbers", "cut"])
def test_what_is_no_state_dict_is_one_clear_error(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture
):
    path = tmp_path / "weights.pth"
    if content == "trap":
        path.write_bytes(pickle.dumps({"a": _Trap()}, protocol=2))
    elif content == "text":
        path.write_text("not weights")
    elif content == "numbers":
        torch.save({"state_dict": {"a": 1}}, path)
    else:
        torch.save(unet().state_dict(), path)
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot be read as weights|holds no state dict"):
        load_weights(unet(), path)
    assert "ran" not in capsys.readouterr().out


def test_damaged_safetensors_and_missing_files_are_clear_errors(tmp_path: Path):
    (tmp_path / "weights.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(unet(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="no such weights file"):
        load_weights(unet(), tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("encoder", "name", "dropped"),
    [
        ("tu-mobilenetv2_035", "mobilenetv2_035", "conv_head.weight"),
        ("tu-resnet18", "resnet18", "fc.weight"),
        ("tu-convnext_atto", "convnext_atto", "head.fc.weight"),
    ],
)
def test_timm_weights_load_into_the_encoder(tmp_path: Path, encoder: str, name: str, dropped: str):
    reference = timm.create_model(name, pretrained=False).eval()
    torch.save(reference.state_dict(), tmp_path / "timm.pth")
    network = SmpNetwork("unet", encoder, 1, IMAGENET_MEAN, IMAGENET_STD).eval()
    unused = load_encoder_weights(network, tmp_path / "timm.pth")
    assert dropped in unused
    features = timm.create_model(name, pretrained=False, features_only=True).eval()
    by_name = {k.replace(".", "_"): v for k, v in reference.state_dict().items()}
    features.load_state_dict({k: by_name[k.replace(".", "_")] for k in features.state_dict()})
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = network.encoder(image)[-1], features(image)[-1]
    assert torch.equal(ours, theirs)


def test_weights_of_another_encoder_are_refused(tmp_path: Path):
    torch.save(timm.create_model("mobilenetv2_050").state_dict(), tmp_path / "timm.pth")
    network = SmpNetwork("unet", "tu-mobilenetv2_035", 1, IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(UserError, match="of another shape"):
        load_encoder_weights(network, tmp_path / "timm.pth")


@pytest.mark.shared
def test_the_shared_mobilenet_loads_with_nothing_missing(shared: Path):
    network = SmpNetwork("unet", "tu-mobilenetv2_035", 1, HALF, HALF)
    before = network.encoder.model.blocks[6][0].conv_pwl.weight.clone()
    unused = load_encoder_weights(network, shared / "models" / "mobilenetv2_035_timm.pth")
    assert unused and all(name.startswith(("conv_head.", "bn2.")) for name in unused)
    assert not torch.equal(before, network.encoder.model.blocks[6][0].conv_pwl.weight)
