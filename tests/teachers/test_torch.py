"""Torch teachers are the networks they were trained as: strict, frozen, with their own
normalisation.
"""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.segmentation import fcn_resnet50
from torchvision.transforms.functional import normalize

from stillroom.errors import UserError
from stillroom.networks.build import build_network
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from stillroom.students.pretrained import BackboneUNetStudent
from stillroom.teachers.configs import FcnTeacher, RunTeacher, SmpTeacher
from stillroom.teachers.own_configs import TorchTeacher
from stillroom.teachers.torch import state_sha256
from stillroom.training.checkpoint import save_student

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
CHANNELS = (16, 16, 8, 8, 4)
UNET = {"name": "unet", "width": 4, "depth": 2, "classes": 3, "mean": list(MEAN), "std": list(STD)}


def smp(path, **fields):
    values = {
        "target": "person",
        "path": str(path),
        "encoder": "tu-mobilenetv2_035",
        "mean": MEAN,
        "std": STD,
        "decoder_channels": CHANNELS,
        **fields,
    }
    return SmpTeacher(**values)


@pytest.fixture(scope="module")
def network():
    """The trained network that the weights files hold, with BatchNorm statistics of its own."""
    torch.manual_seed(0)
    network = build_network(smp("no").architecture())
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(4, 3, 64, 64))
    return network.eval()


@pytest.fixture
def image():
    return torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", ["bare", "state_dict", "model_state_dict prefixed", "safetensors"])
def test_every_form_of_weights_gives_the_network_back(tmp_path, network, image, form):
    state = network.state_dict()
    path = tmp_path / "a.pth"
    if form == "bare":
        torch.save(state, path)
    elif form == "state_dict":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif form == "safetensors":
        path = tmp_path / "a.safetensors"
        save_file(state, path)
    else:
        torch.save({"model_state_dict": {f"model.{k}": v for k, v in state.items()}}, path)
    built = smp(path, taps=(("feature", "encoder.3"),)).build("cpu")
    assert ("'model.' before each of" in built.report) == form.endswith("prefixed")
    found = built(image)
    with torch.no_grad():
        logits, features = network.forward_taps(image, ("encoder.3",))
    assert list(found) == ["person", "feature"]
    torch.testing.assert_close(found["person"], logits)
    torch.testing.assert_close(found["feature"], features["encoder.3"])
    assert found["feature"].shape[2:] == (8, 12)
    assert not found["person"].requires_grad


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, network):
    state = network.state_dict()
    first = next(iter(state))
    path = tmp_path / "a.pth"
    torch.save(
        {**{k: v for k, v in state.items() if k != first}, "strange.weight": state[first]}, path
    )
    with pytest.raises(UserError) as caught:
        smp(path).build("cpu")
    assert first in str(caught.value) and "strange.weight" in str(caught.value)
    torch.save(state, path)
    with pytest.raises(UserError, match="segmentation_head"):
        smp(path, classes=2).build("cpu")


def test_the_rows_of_a_batch_do_not_meet(tmp_path, network, image):
    torch.save(network.state_dict(), tmp_path / "a.pth")
    built = smp(tmp_path / "a.pth").build("cpu")
    together, alone = built(image)["person"], built(image[1:])["person"]
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


def test_another_preprocessing_can_be_tried(tmp_path, network, image):
    torch.save(network.state_dict(), tmp_path / "a.pth")
    built = smp(tmp_path / "a.pth").build("cpu")
    assert isinstance(built.preprocessing, Normalise)
    own = built(image)["person"]
    other = Normalise(MEAN, STD, channels="BGR")
    torch.testing.assert_close(built(image.flip(1), preprocessing=other)["person"], own)
    assert not torch.allclose(built(image, preprocessing=other)["person"], own)
    assert torch.equal(built(image)["person"], own)


def test_a_tap_that_is_not_there_is_refused_before_any_picture(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"encoder\.99(.|\n)*encoder\.3"):
        smp(tmp_path / "a.pth", taps=(("feature", "encoder.99"),)).build("cpu")


def test_a_gpu_that_is_not_there_is_refused(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match="is not there"):
        smp(tmp_path / "a.pth").build("cuda:97")


def test_autocast_around_a_teacher_changes_nothing(tmp_path, network, image):
    torch.save(network.state_dict(), tmp_path / "a.pth")
    built = smp(tmp_path / "a.pth").build("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        found = built(image)["person"]
    assert torch.equal(found, built(image)["person"]) and found.dtype == torch.float32


def test_a_finished_run_is_a_teacher_as_it_stands(tmp_path, image):
    torch.manual_seed(0)
    student = build_network(UNET).eval()
    save_student(tmp_path, student, {"network": UNET, "classes": ["a", "b", "c"]})
    config = RunTeacher(target="shapes", path=str(tmp_path), taps=(("feature", "encoder.1"),))
    found = config.build("cpu")(image)
    with torch.no_grad():
        logits, features = student.forward_taps(image, ("encoder.1",))
    torch.testing.assert_close(found["shapes"], logits)
    torch.testing.assert_close(found["feature"], features["encoder.1"])
    assert config.identity()["architecture"] == UNET


@pytest.mark.gpu
def test_on_a_gpu_the_answer_is_that_of_the_cpu(tmp_path, network, image):
    torch.save(network.state_dict(), tmp_path / "a.pth")
    found = smp(tmp_path / "a.pth").build("cuda")(image)["person"]
    wanted = smp(tmp_path / "a.pth").build("cpu")(image)["person"]
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-4, rtol=1e-4)


class Own(nn.Module):
    """Logits at a quarter of the size; `seq` gives tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.seq = nn.Identity()
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, image):
        feature = self.norm(self.stem(image))
        self.seq(feature.flatten(2).transpose(1, 2))
        return self.head(feature), feature


def vector():
    return nn.Flatten()


def own(function="Own", **fields):
    return TorchTeacher(**{"factory": f"{__file__}:{function}", "target": "own", **fields})


def test_a_module_of_ones_own_answers_as_it_does_alone(tmp_path, image):
    torch.manual_seed(5)
    module = Own().eval()
    torch.save(module.state_dict(), tmp_path / "own.pth")
    fields = {"channels": "BGR", "scale": 255.0, "mean": (9.0, 8.0, 7.0), "std": (50.0, 60.0, 70.0)}
    weights = str(tmp_path / "own.pth")
    built = own(weights=weights, outputs=(("inner", "stem"),), **fields).build("cpu")
    found = built(image)
    normalised = (image.flip(1) * 255 - torch.tensor([9.0, 8, 7]).view(3, 1, 1)) / torch.tensor(
        [50.0, 60, 70]
    ).view(3, 1, 1)
    with torch.no_grad():
        logits, inner = module(normalised)[0], module.stem(normalised)
    large = nn.functional.interpolate(logits, (64, 96), mode="bilinear")
    torch.testing.assert_close(found["own"], large)
    torch.testing.assert_close(found["inner"], inner)
    assert not any(m._forward_hooks for m in built._network.modules())
    only = own(target=None, outputs=(("inner", "stem"),), weights=weights, **fields)
    assert list(only.build("cpu")(image)) == ["inner"] == list(only.targets)


def test_a_factory_without_weights_makes_the_same_ones_each_time():
    first, again = own().build("cpu"), own().build("cpu")
    assert first.identity == again.identity and len(first.identity["state_dict_sha256"]) == 64


def test_the_sha256_of_a_state_dict_sees_names_types_shapes_and_bytes():
    def sha256(**buffers):
        module = nn.Module()
        for name, value in buffers.items():
            module.register_buffer(name, value)
        return state_sha256(module)

    ones = torch.ones(2, 2)
    other = [{"b": ones}, {"a": ones.double()}, {"a": ones.view(4)}, {"a": ones + 1e-6}]
    assert len({sha256(a=ones), *(sha256(**buffers) for buffers in other)}) == 5
    pair = {"a": ones.t(), "b": torch.tensor(True)}
    assert sha256(**pair) == sha256(**dict(reversed(pair.items())))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"outputs": (("inner", "seq"),)}, r"seq is no map(.|\n)*tokens have no grid"),
        ({"outputs": (("inner", "sem"),)}, "no module 'sem'(.|\n)*near names: stem"),
        ({"function": "vector"}, r"does not give logits(.|\n)*--teachers\.N\.target None"),
        ({"function": "own"}, "no torch.nn.Module"),
        ({"function": "nobody"}, "no function nobody"),
        ({"weights": "no.pth"}, r"no\.pth does not exist(.|\n)*--teachers\.N\.weights"),
    ],
)
def test_what_is_no_teacher_is_refused(image, fields, text):
    with pytest.raises(UserError, match=text):
        own(**fields).build("cpu")(image)


def fcn(path, **options):
    """torchvision's own network, its weights in a file."""
    torch.manual_seed(0)
    network = fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True, **options).eval()
    torch.save(network.state_dict(), path)
    return network


def test_torchvisions_fcn_says_what_torchvision_says(tmp_path, image):
    network = fcn(tmp_path / "a.pth", num_classes=5)
    taps = (("early", "layer1"), ("late", "layer4"))
    teacher = FcnTeacher(target="scene", weights=f"{tmp_path}/a.pth", classes=5, taps=taps)
    found = teacher.build("cpu")(image)
    with torch.no_grad():
        normalised = normalize(image, IMAGENET_MEAN, IMAGENET_STD)
        torch.testing.assert_close(found["scene"], network(normalised)["out"])
        torch.testing.assert_close(found["late"], network.backbone(normalised)["out"])
    assert [tuple(value.shape[1:]) for value in found.values()] == [
        (5, 64, 96),
        (256, 16, 24),
        (2048, 8, 12),
    ]
    with pytest.raises(UserError, match="2 of another shape: classifier"):
        FcnTeacher(target="scene", weights=f"{tmp_path}/a.pth", classes=4, aux=False).build("cpu")


def test_the_weights_of_voc_come_from_torchvision_or_are_refused(tmp_path, monkeypatch, image):
    def fail(*args, **options):
        raise OSError("no connection")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    teacher = FcnTeacher(target="voc")
    with pytest.raises(UserError, match=r"no connection(.|\n)*--teachers\.N\.weights"):
        teacher.build("cpu")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    network = fcn(tmp_path / "hub" / "checkpoints" / "fcn_resnet50_coco-1167a1af.pth")
    built = teacher.build("cpu")
    with torch.no_grad():
        wanted = network(normalize(image, IMAGENET_MEAN, IMAGENET_STD))["out"]
    torch.testing.assert_close(built(image)["voc"], wanted)
    random = FcnTeacher(target="voc", weights=None).build("cpu")
    assert random.identity["state_dict_sha256"] != built.identity["state_dict_sha256"]


def test_a_supervised_run_of_a_unet_over_vgg16_is_a_teacher_with_five_taps(tmp_path, image):
    student = BackboneUNetStudent(classes=3)
    network = student.build().eval()
    save_student(tmp_path / "run", network, {"network": student.architecture()})
    taps = tuple((f"tap{n}", f"f{n}") for n in range(1, 6))
    built = RunTeacher(target="scene", path=str(tmp_path / "run"), taps=taps).build("cpu")
    found = built(image)
    with torch.no_grad():
        logits, features = network.forward_taps(image, network.taps)
    torch.testing.assert_close(found["scene"], logits)
    for target, tap in taps:
        torch.testing.assert_close(found[target], features[tap])
