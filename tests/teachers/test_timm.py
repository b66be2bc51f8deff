"""Any timm model gives its features as maps: those of the plain model, token grids included."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional

from stillroom.errors import UserError
from stillroom.teachers.own_configs import TimmTeacher

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


@pytest.fixture
def image():
    return torch.rand((2, 3, 32, 64), generator=torch.Generator().manual_seed(1))


def saved(path, name, **options):
    """A whole classifier with weights of its own, as timm's files hold it."""
    torch.manual_seed(3)
    model = timm.create_model(name, **options).eval()
    save_file(model.state_dict(), path)
    return model


def normalised(image, mean=(0.5,) * 3, std=(0.5,) * 3):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (image - mean) / std


def test_the_tokens_of_a_transformer_become_a_grid_without_its_prefix(tmp_path, image):
    model = saved(tmp_path / "vit.safetensors", "test_vit", img_size=(32, 64))
    path, taps = str(tmp_path / "vit.safetensors"), (("late", -1), ("early", 1))
    with pytest.raises(
        UserError, match=r"pos_embed"
    ):  # those of a file are of the model's own size
        TimmTeacher(model="test_vit", weights=path).build("cpu")
    model = saved(tmp_path / "vit.safetensors", "test_vit", dynamic_img_size=True)
    found = TimmTeacher(model="test_vit", taps=taps, weights=path).build("cpu")(image)
    with torch.no_grad():
        tokens = model.forward_features(normalised(image))
        assert tokens.shape[1] == 1 + 2 * 4
        torch.testing.assert_close(
            found["late"], tokens[:, 1:].transpose(1, 2).reshape(2, -1, 2, 4)
        )
    assert list(found) == ["late", "early"] and found["early"].shape == found["late"].shape
    assert not torch.equal(found["early"], found["late"])


def test_the_stages_of_a_convolutional_network_are_those_of_the_plain_one(tmp_path, image):
    saved(tmp_path / "cnn.safetensors", "test_resnet")
    taps = (("deep", -1), ("shallow", 1))
    config = TimmTeacher(
        model="test_resnet", taps=taps, weights=f"{tmp_path}/cnn.safetensors", mean=MEAN, std=STD
    )
    plain = timm.create_model("test_resnet", features_only=True, out_indices=(1, 4)).eval()
    plain.load_state_dict(
        {
            name: value
            for name, value in timm.models.load_state_dict(tmp_path / "cnn.safetensors").items()
            if not name.startswith("fc.")
        }
    )
    found = config.build("cpu")(image)
    with torch.no_grad():
        shallow, deep = plain(normalised(image, MEAN, STD))
    torch.testing.assert_close(found["shallow"], shallow)
    torch.testing.assert_close(found["deep"], deep)


@pytest.mark.parametrize("model", ["test_vit", "swin_tiny_patch4_window7_224", "test_resnet"])
def test_pictures_are_brought_to_the_size_that_is_declared(image, model):
    found = TimmTeacher(model=model, size=(64, 96)).build("cpu")(image)["feature"]
    large = functional.interpolate(image, (64, 96), mode="bilinear", antialias=True)
    wanted = TimmTeacher(model=model).build("cpu")(large)["feature"]
    assert torch.equal(found, wanted)
    assert found.shape[3] * 2 == found.shape[2] * 3


def test_random_weights_and_the_identity_are_a_function_of_the_model(image):
    first, again = (TimmTeacher(model="test_vit").build("cpu") for _ in range(2))
    assert torch.equal(first(image)["feature"], again(image)["feature"])
    assert first.identity == again.identity
    assert first.identity["normalisation"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    other = TimmTeacher(model="test_vit2").build("cpu")
    assert other.identity["state_dict_sha256"] != first.identity["state_dict_sha256"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model": "test_wit"}, r"no such model(.|\n)*test_vit"),
        ({"model": "hf-hub:somebody/something"}, "no such model"),
        ({"model": "test_vit", "taps": (("feature", 6),)}, "0 to 5, or -1"),
        ({"model": "test_vit", "weights": "no.pth"}, r"no\.pth does not exist"),
        (
            {"model": "hiera_tiny_224", "size": (224, 224)},
            r"not supported(.|\n)*--teachers\.N\.no-norm",
        ),
        ({"model": "nest_tiny", "size": (32, 64)}, r"doesn't match model(.|\n)*N\.size"),
        ({"model": "test_vit", "size": (33, 64)}, r"divisible by patch size(.|\n)*N\.size"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(image, fields, text):
    with pytest.raises(UserError, match=text):
        TimmTeacher(**fields).build("cpu")(image)


def test_weights_that_cannot_be_fetched_are_refused_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"could not be downloaded(.|\n)*--teachers\.N\.weights"):
        TimmTeacher(model="test_vit", weights="pretrained").build("cpu")
    with pytest.raises(UserError, match="No pretrained weights exist"):
        TimmTeacher(model="mnasnet_050", weights="pretrained").build("cpu")


def test_every_field_that_changes_the_features_changes_the_identity(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"weights")
    base = TimmTeacher(model="test_vit")
    changes = (
        {"model": "test_vit2"},
        {"taps": (("feature", 1),)},
        {"weights": "pretrained"},
        {"weights": f"{tmp_path}/a.pth"},
        {"size": (32, 32)},
        {"norm": False},
        {"mean": MEAN},
        {"std": STD},
    )
    for with_files in (False, True):
        some = [base, *(TimmTeacher(**{"model": "test_vit", **change}) for change in changes)]
        identities = [teacher.identity(with_files) for teacher in some]
        assert all(identities.count(identity) == 1 for identity in identities)
    assert base.identity(False).items() <= base.identity().items()
    for wrong in ({"taps": ()}, {"size": (0, 2)}, {"std": (1.0, 0.0, 1.0)}):
        with pytest.raises(UserError):
            TimmTeacher(**{"model": "test_vit", **wrong})
