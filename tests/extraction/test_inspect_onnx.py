"""An ONNX file is looked into before it becomes a teacher, and the right preprocessing is found."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from stillroom.errors import UserError
from stillroom.extraction.inspect_onnx import about, fit_preprocessing, fits_text
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD
from stillroom.pictures.make import make_shards

FLOAT = onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """12 pictures of coloured blocks; foreground is where red is near one half."""
    folder = tmp_path_factory.mktemp("blocks")
    draw = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(12):
        image = draw.integers(0, 256, (8, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(image).save(folder / f"images/{number}.png")
        near = abs(image[..., 0] - 127.5) < 0.2 * 255
        Image.fromarray(near.astype(np.uint8)).save(folder / f"masks/{number}.png")
    text = f"folders:{folder}/images,{folder}/masks"
    make_shards(text, out=folder / "shards", size=(32, 32), format="png", val_share=0.0)
    return folder / "shards"


def reddish(path: Path, channel: int, mean: float, std: float, scale: float, sigmoid=False) -> Path:
    """Save a network that says how near red, at `channel`, is to one half of the whole range, if it
    is fed with this mean and deviation of red.
    """
    weight = np.zeros((1, 3, 1, 1), np.float32)
    weight[0, channel] = 1
    bias = np.array([-(0.5 * scale - mean) / std], np.float32)
    width = np.array(0.2 * scale / std, np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["inner"]),
        helper.make_node("Abs", ["inner"], ["away"]),
        helper.make_node("Sub", ["width", "away"], ["near"]),
        helper.make_node("Sigmoid" if sigmoid else "Identity", ["near"], ["mask"]),
    ]
    image = helper.make_tensor_value_info("image", FLOAT, ["n", 3, "h", "w"])
    mask = helper.make_tensor_value_info("mask", FLOAT, ["n", 1, "h", "w"])
    arrays = {"w": weight, "b": bias, "width": width}
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", [image], [mask], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


USUAL = {
    "BGR in 0..255": (2, 0.0, 1.0, 255.0, "channels BGR --teachers.N.scale 255"),
    "RGB with ImageNet mean and std": (
        0, IMAGENET_MEAN[0], IMAGENET_STD[0], 1.0, "mean 0.485 0.456 0.406",
    ),
    "BGR in 0..255 minus ImageNet mean": (
        2, 255 * IMAGENET_MEAN[0], 1.0, 255.0, "mean 103.5 116.3 123.7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("name", USUAL)
def test_the_preprocessing_of_the_network_comes_first_with_its_flags(
    tmp_path, shards, name, sigmoid
):
    *network, flags = USUAL[name]
    path = str(reddish(tmp_path / "a.onnx", *network, sigmoid))
    best, second, *rest = fit_preprocessing(path, shards)
    assert best.name == name and best.scores.miou == 1.0 > second.scores.miou + 0.01
    assert len(rest) == 8 and flags in fits_text([best, second], path)


def test_a_mean_and_deviation_of_its_own_are_found_where_the_usual_ones_do_worse(tmp_path, shards):
    path = reddish(tmp_path / "a.onnx", 2, 0.35, 0.32, 1.0)
    best, second, *_ = fit_preprocessing(str(path), shards)
    assert best.name == "BGR with mean and std of its own"
    assert best.scores.miou > second.scores.miou + 0.01


def test_two_that_are_equal_are_not_said_to_be_told_apart(tmp_path, shards):
    path = str(reddish(tmp_path / "a.onnx", 0, 0.5, 0.5, 1.0))
    best, second, *_ = fit_preprocessing(path, shards)
    assert "for sure" not in fits_text([best, second], path)
    text = fits_text([best, replace(best, name="another")], path)
    assert "within 0.01 of it, so not told apart for sure: another" in text


def test_a_network_of_other_classes_is_not_judged(tmp_path, shards, monkeypatch):
    path = reddish(tmp_path / "a.onnx", 0, 0.0, 1.0, 1.0)
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Concat", ["mask"] * 5, ["five"], axis=1))
    model.graph.output.add(name="five").type.tensor_type.elem_type = FLOAT
    onnx.save(model, path)
    with pytest.raises(UserError, match="5 classes, 5 channels"):
        fit_preprocessing(str(path), shards, tensor="five")
    assert "outputs: five, mask" in about(str(path))


def test_tensors_are_listed_page_by_page(tmp_path):
    path = str(reddish(tmp_path / "a.onnx", 0, 0.0, 1.0, 1.0))
    text = about(path, size=(64, 48))
    assert "input: image, any x 3 x any x any" in text and "a picture of 64 x 48" in text
    assert ["inner", "1x1x64x48", "1", "Conv"] in [line.split() for line in text.splitlines()]
    assert about(path, near="mask").splitlines()[5].split()[0] == "mask"
    with pytest.raises(UserError, match="no such page"):
        about(path, page=2)
