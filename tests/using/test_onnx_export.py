"""An export says what PyTorch says, or there is none."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from stillroom.errors import UserError
from stillroom.networks.normalise import Normalise
from stillroom.networks.smp import SmpNetwork
from stillroom.networks.taps import Network
from stillroom.pictures.dataset import open_pictures
from stillroom.pictures.make import make_shards
from stillroom.using import onnx_export as module
from stillroom.using.evaluation import open_data
from stillroom.using.onnx_export import export, plain_weights
from stillroom.using.student import load_student


def run_onnx(path: Path, **inputs: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, inputs)[0]


@pytest.mark.parametrize("shape", [(1, 3, 32, 48), (5, 3, 32, 48), (2, 3, 64, 16)])
def test_any_batch_and_size_says_what_pytorch_says(used_run, exported, shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = load_student(used_run).network(image).numpy()
    found = run_onnx(exported[0] / "student.onnx", images=image.numpy())
    assert np.abs(found - wanted).max() < 1e-4


def test_it_says_of_itself_what_it_takes_and_gives_and_names_no_path(used_run, exported):
    model = onnx.load(exported[0] / "student.onnx")
    said = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    about = load_student(used_run).about
    assert said["classes"] == about["classes"] and said["palette"][1] == [200, 0, 0]
    assert said["weights_sha256"] == about["weights_sha256"]
    assert said["preprocessing"]["fit"] == "letterbox"
    assert said["preprocessing"]["size"] == [32, 48]
    assert not [text for text in map(str, said.values()) if str(used_run.parent.parent) in text]
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    assert names == ["images", "logits"]


@pytest.mark.parametrize("name", ["student.onnx", "student.fp16.onnx", "student.int8.onnx"])
def test_an_export_is_a_student_like_its_run(used_run, exported, name):
    picture = np.array(Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).resize((90, 50)))
    student, run = load_student(exported[0] / name), load_student(used_run)
    assert student.geometry == run.geometry
    least = 1.0 if name == "student.onnx" else 0.95
    assert np.mean(student.mask(picture) == run.mask(picture)) >= least
    assert (exported[0] / "student.fp16.onnx").stat().st_size < (
        exported[0] / "student.onnx"
    ).stat().st_size


def test_lower_precision_is_scored_beside_full(exported):
    out, found = exported
    assert (
        "largest difference" in found["student.onnx"] and "multiple of 2" in found["student.onnx"]
    )
    for name in ("student.fp16.onnx", "student.int8.onnx"):
        assert "mIoU" in found[name] and "fp32" in found[name]
    kinds = {node.op_type for node in onnx.load(out / "student.int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds


def test_the_bare_weights_load_and_the_card_says_what_matters(used_run, exported):
    state = torch.load(exported[0] / "student.pth", weights_only=True)
    load_student(used_run).network.load_state_dict(state)
    card = (exported[0] / "card.md").read_text()
    for text in (
        "# shapes",
        "8 to train and 4",
        "| 0.7000 |",
        "absent",
        "letterboxed",
        "IoU below",
    ):
        assert text in card
    assert str(used_run.parent.parent) not in card


def test_a_plain_smp_network_takes_the_weights_of_ours(used_run):
    import segmentation_models_pytorch as smp

    ours = SmpNetwork("unet", "resnet18", 3, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), (32, 16, 8, 8, 4))
    state = plain_weights(replace(load_student(used_run), network=ours.eval()))
    plain = smp.create_model(
        "unet", "resnet18", None, classes=3, decoder_channels=(32, 16, 8, 8, 4)
    )
    plain.load_state_dict(state)
    image = torch.rand(1, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(plain.eval()((image - 0.5) / 0.2), ours(image))


class Small(Network):
    """A 1x1 convolution: `change` is called with its logits (b 2 h w), and boxes where wanted."""

    stride, taps = 4, ()

    def __init__(self, change) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.normalise = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.head, self._change = nn.Conv2d(3, 2, 1), change

    def forward(self, image, boxes=None):
        return self._change(self.head(image), boxes)


def test_a_network_that_takes_one_size_only_is_exported_for_that_size(used_run, tmp_path):
    trained = load_student(used_run)
    network = Small(lambda logits, _: logits + torch.arange(32 * 48.0).view(32, 48) / 1000)
    one_size = replace(trained, network=network.eval())
    found = export(one_size, open_data(trained, None), tmp_path / "out")["student.onnx"]
    assert "any batch, 32 x 48 px only" in found
    image = torch.rand(5, 3, 32, 48)
    with torch.no_grad():
        wanted = network(image).numpy()
    assert np.allclose(
        run_onnx(tmp_path / "out/student.onnx", images=image.numpy()), wanted, atol=1e-5
    )


def test_an_export_that_says_something_else_leaves_nothing(used_run, tmp_path, monkeypatch):
    run, write = load_student(used_run), module._write
    trained = replace(run, network=Small(lambda logits, _: logits).eval())

    def tampered(trained, path, is_free) -> None:
        write(trained, path, is_free)
        model = onnx.load(path)
        (bias,) = (v for v in model.graph.initializer if v.name == "head.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(np.full(2, 0.3, np.float32), bias.name))
        onnx.save(model, path)

    monkeypatch.setattr(module, "_write", tampered)
    with pytest.raises(
        UserError, match=r"is not the student: largest difference(.|\n)*nothing was"
    ):
        export(trained, open_data(run, None), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_network_of_boxes_has_two_inputs(used_run, tmp_path):
    (tmp_path / "images").mkdir()
    square = [[4, 4, 20, 4, 20, 20, 4, 20]]
    marks = [
        {"image_id": i, "category_id": 1, "iscrowd": 0, "id": i, "segmentation": square}
        for i in range(3)
    ]
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (32, 48, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"images/p{i}.png")
    body = {
        "images": [
            {"id": i, "file_name": f"p{i}.png", "height": 32, "width": 48} for i in range(3)
        ],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": marks,
    }
    (tmp_path / "marks.json").write_text(json.dumps(body))
    source = f"coco:{tmp_path / 'images'},{tmp_path / 'marks.json'}"
    make_shards(source, out=tmp_path / "shards", size=(32, 48), format="png", val_share=0.0)
    network = Small(lambda logits, boxes: logits * boxes.mean(1)[:, None, None, None] / 10)
    network.needs_boxes = True
    used = load_student(used_run)
    about = {**used.about, "regions": (32, 48)}
    trained = replace(used, network=network.eval(), about=about)
    export(trained, open_pictures(tmp_path / "shards"), tmp_path / "out")
    image, boxes = torch.rand(3, 3, 32, 48), torch.rand(3, 4) * 32
    with torch.no_grad():
        wanted = network(image, boxes).numpy()
    path = tmp_path / "out/student.onnx"
    found = run_onnx(path, images=image.numpy(), boxes=boxes.numpy())
    assert np.allclose(found, wanted, atol=1e-5)


def test_what_is_no_export_is_refused(used_run, exported, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no")
    model = onnx.load(exported[0] / "student.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    for name, match in (
        ("broken", "no ONNX network"),
        ("foreign", "stillroom export"),
        ("x", "no file"),
    ):
        with pytest.raises(UserError, match=match):
            load_student(tmp_path / f"{name}.onnx")
    with pytest.raises(UserError, match=r"is an export(.|\n)*runs/NAME"):
        open_data(load_student(exported[0] / "student.onnx"), None)
