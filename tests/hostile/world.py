"""The clean world that the cases spoil, and the ways in which each kind of file is read.

A shard of pictures, a cache, a run with a checkpoint, an ONNX network with external data, torch
weights, and sources to pack. Nothing in it is computed by torch or onnxruntime: a process that has
run their threads should not be forked.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import segmentation_models_pytorch  # noqa: F401  (what is imported here is no child's extra memory)
import torch
import torch._dynamo
from onnx import helper, numpy_helper
from PIL import Image

from stillroom.cache import claim_cache, make_identity, open_cache
from stillroom.jsonfile import canonical, digest, file_sha256, read_json
from stillroom.networks.build import build_network, load_weights
from stillroom.pictures.dataset import open_pictures
from stillroom.pictures.make import make_shards
from stillroom.teachers import onnx as _onnx  # noqa: F401  (as above)
from stillroom.teachers.configs import OnnxTeacher, RunTeacher
from stillroom.training.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    save_student,
)
from stillroom.types import Row, RowStatistics, ShardId, View
from stillroom.using.student import load_student

TRAIN = ShardId("train", 0)
UNET = {"name": "unet", "width": 4, "depth": 2, "classes": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
SIZE_PX, NUM_PICTURES = 16, 5
SHARD = "cache/train-000000.zarr"


def make_world(folder: Path) -> None:
    """Fill an empty folder."""
    _make_source(folder / "voc")
    source, size = f"voc:{folder / 'voc'}", (SIZE_PX, SIZE_PX)
    make_shards(source, out=folder / "shards", val_share=0.0, size=size, format="png")
    _make_cache(folder / "cache")
    _make_run(folder / "run")
    torch.save(build_network(UNET).state_dict(), folder / "weights.pt")
    make_onnx(folder / "network.onnx", external=folder / "w.bin")
    make_onnx(folder / "plain.onnx")


def _make_source(voc: Path) -> None:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(NUM_PICTURES):
        pixels = random.integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
        Image.fromarray(pixels).save(voc / f"JPEGImages/p{i}.png")
        Image.fromarray(pixels[..., 0] % 2).save(voc / f"SegmentationClass/p{i}.png")
    names = "".join(f"p{i}\n" for i in range(NUM_PICTURES))
    (voc / "ImageSets/Segmentation/train.txt").write_text(names)


def _make_cache(path: Path) -> None:
    shards = [{"split": "train", "number": 0, "rows": NUM_PICTURES, "pictures": "0" * 64}]
    target = {"teacher": {"class": "Fake"}, "shape": [2, 4, 4], "stride": 4, "kind": "logits"}
    identity = make_identity(
        pictures={"digest": "0" * 64, "shards": shards},
        geometry=(SIZE_PX, SIZE_PX),
        views={"class": "Views", "count": 1, "regions": False},
        targets={"mask": target | {"codec": "float16"}},
        calibration=[],
    )
    cache = claim_cache(path.parent / "claims", "mask", identity)
    cache.publish_fitted({})
    with cache.writer(TRAIN) as writer:
        for i in range(NUM_PICTURES):
            value = np.random.default_rng(i).random((2, 4, 4)).astype(np.float16)
            row = Row(key=f"p{i}", view=View(x0=0, y0=0, x1=SIZE_PX, y1=SIZE_PX))
            statistics = RowStatistics(low=0.0, high=1.0, finite=1.0, confidence=0.5)
            writer.append(row, {"mask.value": value}, {"mask": statistics}, pixels=0)
        writer.publish({})
    cache.finalize()
    cache.path.rename(path)


def _make_run(run: Path) -> None:
    network, optimizer = training()
    about = {"network": UNET, "classes": ["a", "b", "c"], "pictures": {"path": "x"}, "batch": 4}
    save_student(
        run, network, about | {"geometry": {"height": SIZE_PX, "width": SIZE_PX, "fit": "stretch"}}
    )
    state = {"step": 2, "epochs": 1, "evaluations": [], "scaler": None}
    save_checkpoint(run, network, optimizer, state, 2)


def training() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The network of the run, and its optimiser."""
    network = build_network(UNET)
    return network, torch.optim.AdamW(network.parameters())


def make_onnx(path: Path, external: Path | None = None, **weights: onnx.TensorProto) -> None:
    """Write image -> Conv with `w` -> output; `weights` replace `w`, or are added."""
    value = np.ones((2, 3, 1, 1), np.float32)
    w = numpy_helper.from_array(value, "w")
    if external is not None:
        external.write_bytes(value.tobytes())
        point_to(w, external.name, 0, value.nbytes)
    initializers = {"w": w} | weights
    float_type = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["output"])],
        "g",
        [helper.make_tensor_value_info("image", float_type, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("output", float_type, None)],
        list(initializers.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def point_to(tensor: onnx.TensorProto, location: str, offset: object, length: object) -> None:
    """Make a tensor external."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def pack_again(folder: Path) -> None:
    """Pack the VOC source that was spoilt, to another place."""
    make_shards(f"voc:{folder / 'voc'}", out=folder / "again", val_share=0.0, format="png")


def read_pictures(folder: Path) -> int:
    """Read every member of every shard."""
    pictures = open_pictures(folder / "shards")
    shards = [pictures.open(shard) for shard in pictures.shard_ids()]
    return len([shard.read(i) for shard in shards for i in range(len(shard))])


def read_rows(folder: Path) -> object:
    """Read every row of the cache, and what says that it is complete."""
    cache = open_cache(folder / "cache")
    shards = [cache.reader(shard) for shard in cache.shard_ids()]
    num_rows = len([shard.read(i) for shard in shards for i in range(len(shard))])
    return num_rows, cache.is_complete


def use_run(folder: Path) -> object:
    """Load the run's student."""
    return load_student(folder / "run").num_parameters


def teach_with_run(folder: Path) -> object:
    """Take the run as a teacher: identity, then network."""
    teacher = RunTeacher(target="mask", path=str(folder / "run"))
    return teacher.identity(), teacher.build("cpu")


def resume(folder: Path) -> object:
    """Load the newest checkpoint of the run."""
    network, optimizer = training()
    found, state = newest_checkpoint(folder / "run", lambda text: None)
    load_checkpoint(found, network, optimizer)
    return state["step"]


def load_foreign(folder: Path) -> int:
    """Load foreign torch weights."""
    return load_weights(build_network(UNET), folder / "weights.pt")


def teach_with_onnx(name: str = "network.onnx") -> Callable[[Path], object]:
    """Take an ONNX network as a teacher."""

    def read(folder: Path) -> object:
        path = str(folder / name)
        return OnnxTeacher(target="mask", path=path, kind="logits").build("cpu").batch

    return read


def identify_onnx(folder: Path) -> object:
    """Say what an ONNX network is, without onnx."""
    path = str(folder / "network.onnx")
    return OnnxTeacher(target="mask", path=path, kind="logits").identity()


def sign(path: Path, head: bytes) -> None:
    """Write `head`, whatever it is, with the checksum of our JSON files."""
    digest = hashlib.sha256(head).hexdigest()
    path.write_bytes(head[:-1] + f',"sha256":"{digest}"}}\n'.encode())


Change = Callable[[dict[str, Any]], object]


def edited(path: Path, change: Change) -> str:
    """Change the body of one of our JSON files in place, with a good checksum; return that."""
    body = read_json(path)
    change(body)
    sign(path, canonical(body))
    return digest(body)


def edit_file(name: str) -> Callable[[Change], Callable[[Path], object]]:
    """Change any of our JSON files."""
    return lambda change: lambda folder: edited(folder / name, change)


edit_dataset = edit_file("shards/dataset.json")
edit_shard_index = edit_file(f"{SHARD}/shard.json")


def edit_index(change: Change) -> Callable[[Path], object]:
    """Change the index of the picture shard; dataset.json names the new one."""

    def make(folder: Path) -> None:
        sha256 = edited(folder / "shards" / f"{TRAIN}.json", change)
        size = (folder / "shards" / f"{TRAIN}.tar").stat().st_size
        facts = {"index_sha256": sha256, "size": size}
        edit_dataset(lambda body: body["shards"][0].update(facts))(folder)

    return make


def rehash(run: Path) -> None:
    """Make student.json name the weights that lie there."""
    facts = {"weights_sha256": file_sha256(run / "student.safetensors")}
    edited(run / "student.json", lambda body: body.update(facts))


def append(path: Path, data: bytes) -> None:
    """Write after the end of a file."""
    with path.open("ab") as file:
        file.write(data)


def sparse(path: Path, size: int, head: bytes = b"") -> None:
    """Write a file of that size that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
