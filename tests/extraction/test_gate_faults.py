"""Every usual fault of an ONNX teacher is refused with its cause, and the sound one passes."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

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

WITHOUT = "batch statistics without BatchNorm"
CAUSES = {
    "NaN in one weight": "not finite",
    "NaN layer": "not finite",
    "a quarter of a layer's filters zero": "are dead: all zeros",
    "half of a layer's filters zero": "are dead: all zeros",
    "output layer zero": "are dead: all zeros",
    "random weights": "wrong or random weights",
    "BatchNorm in training mode": "in training mode",
    WITHOUT: "depends on the other pictures of the batch",
}
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def broken_onnx(load_module) -> ModuleType:
    """The module that breaks networks."""
    return load_module("extraction/broken_onnx.py")


def save_reddish(path: Path) -> OnnxTeacher:
    """Write a network that knows foreground exactly, where red is above one half; eight channels
    wide, so that parts of a layer can be taken away.
    """
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


def judged(config: OnnxTeacher, rounds) -> Verdict:
    return judge(config, config.build("cpu"), rounds, 2, 0.5)[0]


def test_each_fault_of_a_small_network_is_refused_with_its_cause(samples, broken_onnx, tmp_path):
    config = save_reddish(tmp_path / "sound.onnx")
    sound = judged(config, [samples])
    assert sound.reasons == () and sound.figures["miou"] == 1
    seen = set()
    for fault, model in broken_onnx.broken(Path(config.path)):
        path = tmp_path / f"{len(seen)}.onnx"
        onnx.save_model(model, str(path))
        verdict = judged(replace(config, path=str(path)), [samples])
        assert CAUSES[fault] in verdict.reasons[0], (fault, verdict)
        seen.add(fault)
    assert seen == CAUSES.keys()


def test_batch_norm_in_training_mode_shows_in_behaviour_and_in_the_graph(
    samples, broken_onnx, tmp_path
):
    config = save_reddish(tmp_path / "sound.onnx")
    model = broken_onnx.train_batch_norm(onnx.load(config.path))
    onnx.save_model(model, str(tmp_path / "broken.onnx"))
    reasons = judged(replace(config, path=str(tmp_path / "broken.onnx")), [samples]).reasons
    assert "1 of 1 BatchNorms are in training mode" in reasons[0]
    assert "training mode" in reasons[1]  # onnxruntime moves the running statistics at every call


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
@pytest.mark.parametrize(("name", "size"), [("prisma", 256), ("deeplab", 256), ("deeplab", 513)])
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


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["prisma", "deeplab"])
def test_each_fault_of_a_person_network_is_refused_with_its_cause(
    shared, tmp_path, broken_onnx, name
):
    pictures, config = pack(shared, tmp_path, 256), person(shared, name)
    for number, (fault, model) in enumerate(broken_onnx.broken(Path(config.path))):
        path = tmp_path / f"{number}.onnx"
        onnx.save_model(model, str(path))
        broken = replace(config, path=str(path))
        if fault == WITHOUT and broken.build("cpu").batch == 1:
            continue  # asked one picture at a time it does answer for each alone
        verdict = judged(broken, gate_pictures(pictures, wanted=12))
        assert any(CAUSES[fault] in reason for reason in verdict.reasons), (fault, verdict)
