"""Every usual fault of an ONNX teacher is refused with its cause, and the sound one passes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from stillroom.extraction.gate import Verdict, gate_pictures, judge
from stillroom.extraction.preprocessing import other_preprocessings
from stillroom.networks.normalise import Normalise
from stillroom.pictures.dataset import Picture, PictureSet, open_pictures
from stillroom.pictures.make import make_shards
from stillroom.teachers.configs import OnnxTeacher

HALF = (0.5, 0.5, 0.5)


def save_reddish(path: Path) -> OnnxTeacher:
    """Write a network that knows foreground exactly, where red is above one half."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 0.3, (8, 3, 1, 1)), rng.normal(0, 0.3, (8, 8, 1, 1))
    last = rng.normal(0, 1e-4, (1, 8, 1, 1))
    first[0, :, 0, 0], second[0, :, 0, 0], last[0, 0] = (1, 0, 0), np.eye(8)[0], 20
    weights = {"first": first, "second": second, "last": last, "less": np.array([-10.0])}
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "last", "less"], ["said"]),
    ]
    shape = ["n", 3, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "reddish",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("said", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=8)
    onnx.save_model(model, str(path))
    return OnnxTeacher(target="said", path=str(path), kind="logits")


@pytest.fixture(scope="module")
def samples() -> list[Picture]:
    draw = np.random.default_rng(0)
    found = []
    for number in range(8):
        image = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        mask = (image[..., 0] > 127).astype(np.uint8)
        found.append(Picture(key=str(number), image=image, mask=mask, inside=(0, 0, 16, 16)))
    return found


def judged(config: OnnxTeacher, pictures: Sequence[Picture]) -> Verdict:
    return judge(config, config.build("cpu"), pictures, 2, 0.5)[0]


def not_a_number(model: onnx.ModelProto) -> None:
    change(model, "second", lambda values: np.where(values == values.flat[0], np.nan, values))


def output_layer_zero(model: onnx.ModelProto) -> None:
    change(model, "last", np.zeros_like)


def random_weights(model: onnx.ModelProto) -> None:
    rng = np.random.default_rng(0)
    for name in ("first", "second", "last"):
        change(model, name, lambda values: rng.normal(0, values.std(), values.shape))


def batch_norm_in_training_mode(model: onnx.ModelProto) -> None:
    values = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "variance": 1.0}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.full(8, v, np.float32), n) for n, v in values.items()
    )
    model.graph.node[2].output[0] = "inner"
    outputs = ["c", "m", "v", "sm", "sv"]  # before opset 14, more than one is training mode
    norm = helper.make_node("BatchNormalization", ["inner", *values], outputs, name="bn")
    model.graph.node.insert(3, norm)


def statistics_of_the_batch(model: onnx.ModelProto) -> None:
    model.graph.node[2].output[0] = "inner"
    mean = helper.make_node("ReduceMean", ["inner"], ["mean"], axes=[0, 2, 3], keepdims=1)
    model.graph.node.insert(3, mean)
    model.graph.node.insert(4, helper.make_node("Sub", ["inner", "mean"], ["c"]))


def change(model: onnx.ModelProto, name: str, function) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            values = np.asarray(function(numpy_helper.to_array(tensor)), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, name))


@pytest.mark.parametrize(
    ("fault", "causes"),
    [
        (not_a_number, ("weights second are not finite", "values are not finite")),
        (output_layer_zero, ("dead: the output is the same everywhere",)),
        (random_weights, ("wrong or random weights",)),
        # onnxruntime moves the running statistics at every call
        (batch_norm_in_training_mode, ("1 of 1 BatchNorms are in training mode", "training mode")),
        (statistics_of_the_batch, ("depends on the other pictures of the batch",)),
    ],
)
def test_each_fault_of_a_network_is_refused_with_its_cause(samples, tmp_path, fault, causes):
    config = save_reddish(tmp_path / "sound.onnx")
    sound = judged(config, samples)
    assert sound.reasons == () and sound.figures["miou"] == 1
    model = onnx.load(config.path)
    fault(model)
    onnx.save_model(model, str(tmp_path / "broken.onnx"))
    reasons = judged(replace(config, path=str(tmp_path / "broken.onnx")), samples).reasons
    assert all(cause in found for cause, found in zip(causes, reasons, strict=False)), reasons
    assert len(reasons) >= len(causes)


def pack(shared: Path, folder: Path, size: int) -> PictureSet:
    """The first 2 training pictures and the whole validation split of `people`."""
    source, lists = shared / "data" / "people", folder / "voc" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass", "classes.txt"):
        (folder / "voc" / name).symlink_to(source / name)
    for split, count in (("train", 2), ("val", None)):
        names = (source / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        (lists / f"{split}.txt").write_text("\n".join(names[:count]))
    make_shards(f"voc:{folder / 'voc'}", out=folder / "shards", size=(size, size))
    return open_pictures(folder / "shards")


def person(shared: Path, name: str) -> OnnxTeacher:
    if name == "prisma":
        path = shared / "models" / "prisma_people_256.onnx"
        return OnnxTeacher(target="said", path=str(path), kind="probabilities")
    path = shared / "models" / "deeplab_people_513.onnx"
    return OnnxTeacher(
        target="said", path=str(path), kind="logits", size=(513, 513), mean=HALF, std=HALF
    )


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "size"), [("prisma", 256), ("deeplab", 513)])
def test_a_person_network_passes_with_its_own_preprocessing_and_with_no_other(
    shared, tmp_path, name, size
):
    pictures, config = pack(shared, tmp_path, size), person(shared, name)
    assert judged(config, gate_pictures(pictures)).reasons == ()
    preprocessing = Normalise(config.mean, config.std, config.scale, config.channels)
    right = {"prisma": "RGB in [0, 1]", "deeplab": "RGB in [-1, 1]"}[name]
    for label, other in other_preprocessings(preprocessing).items() if size == 256 else ():
        mean, std = (tuple(t.flatten().tolist()) for t in (other.mean, other.std))
        wrong = replace(config, mean=mean, std=std, scale=other.scale, channels=other.channels)
        (reason,) = judged(wrong, gate_pictures(pictures)).reasons
        assert reason.startswith(f"{right} gives mIoU 0.8"), (label, reason)
