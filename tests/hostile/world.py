"""The clean world that the cases spoil, and the ways in which each kind of file is read.

Two shards of pictures, a cache in each body, a run with a checkpoint, an ONNX network with external
data, torch weights, and sources to pack. Nothing in it is computed by torch or onnxruntime: a
process that has run their threads should not be forked.
"""

import hashlib
import json
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

from stillroom.cache import Cache, claim_cache, make_identity, open_cache, scrub_shard
from stillroom.errors import DamageError
from stillroom.jsonfile import file_sha256, read_json, write_json
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
BODIES = {"zarr": "cache-zarr", "tar": "cache-tar"}
SHARD = {"zarr": "cache-zarr/train-000000.zarr", "tar": "cache-tar/train-000000.wds"}


def make_world(folder: Path) -> None:
    """Fill an empty folder."""
    _make_source(folder)
    pack(folder)
    for body, name in BODIES.items():
        _make_cache(folder / name, body)
    _make_run(folder / "run")
    torch.save(build_network(UNET).state_dict(), folder / "weights.pt")
    make_onnx(folder / "network.onnx", external=folder / "w.bin")
    make_onnx(folder / "plain.onnx")


def _make_source(folder: Path) -> None:
    voc = folder / "voc"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    names = [f"p{i}" for i in range(NUM_PICTURES)]
    for i, name in enumerate(names):
        random = np.random.default_rng(i)
        pixels = random.integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
        Image.fromarray(pixels).save(voc / "JPEGImages" / f"{name}.png")
        mask = random.integers(0, 2, (SIZE_PX, SIZE_PX), np.uint8)
        Image.fromarray(mask).save(voc / "SegmentationClass" / f"{name}.png")
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(names))


def _make_cache(path: Path, body: str) -> None:
    shards = [{"split": "train", "number": 0, "rows": NUM_PICTURES, "pictures": "0" * 64}]
    target = {"teacher": {"class": "Fake"}, "shape": [2, 4, 4], "stride": 4, "kind": "logits"}
    identity = make_identity(
        pictures={"digest": "0" * 64, "shards": shards},
        geometry=(SIZE_PX, SIZE_PX),
        views={"class": "WholePicture", "count": 1, "regions": False},
        targets={"mask": target | {"codec": "float16"}},
        calibration=[],
        body=body,
    )
    cache = claim_cache(path.parent / "claims", body, identity)
    cache.publish_fitted({})
    with cache.writer(TRAIN) as writer:
        for i in range(NUM_PICTURES):
            said = np.random.default_rng(i).standard_normal((2, 4, 4)).astype(np.float16)
            append(writer, i, said)
        writer.publish({})
    cache.finalize()
    cache.path.rename(path)


def append(writer: Any, i: int, said: np.ndarray) -> None:
    """Append row i of the target `mask`."""
    row = Row(key=f"p{i}", view=View(x0=0, y0=0, x1=SIZE_PX, y1=SIZE_PX))
    figures = RowStatistics(
        low=float(said.min()), high=float(said.max()), finite=1.0, confidence=0.5
    )
    writer.append(row, {"mask.value": said}, {"mask": figures})


def _make_run(run: Path) -> None:
    about = {
        "network": UNET,
        "classes": ["a", "b", "c"],
        "geometry": {"height": SIZE_PX, "width": SIZE_PX},
        "pictures": {"path": "shards"},
        "batch": 4,
    }
    network, optimizer = training()
    save_student(run, network, about)
    write_json(run / "recipe.json", {"recipe": {"name": "tiny"}})
    for parameter in network.parameters():
        zeros = torch.zeros_like(parameter)
        fields = {"step": torch.tensor(1.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        optimizer.state[parameter] = fields
    save_checkpoint(run, network, optimizer, {"step": 2, "best": 0.5, "scaler": None}, 2)


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


# the ways to read


def pack(folder: Path) -> None:
    """Pack the VOC source."""
    source = f"voc:{folder / 'voc'}"
    size = (SIZE_PX, SIZE_PX)
    make_shards(source, out=folder / "shards", val_share=0.0, size=size, format="png")


def pack_again(folder: Path) -> None:
    """Pack the VOC source that was spoilt, to another place."""
    make_shards(f"voc:{folder / 'voc'}", out=folder / "again", val_share=0.0, format="png")


def read_pictures(folder: Path) -> int:
    """Read every member of every shard."""
    pictures = open_pictures(folder / "shards")
    shards = [pictures.open(shard) for shard in pictures.shard_ids()]
    return len([shard.read(i) for shard in shards for i in range(len(shard))])


def read_rows(body: str) -> Callable[[Path], object]:
    """Read every row of the cache, and what says that it is complete."""

    def read(folder: Path) -> object:
        cache = open_cache(folder / BODIES[body])
        read_cache(cache)
        return cache.is_complete

    return read


def read_cache(cache: Cache) -> int:
    """Read every row of a cache."""
    shards = [cache.reader(shard) for shard in cache.shard_ids()]
    return len([shard.read(i) for shard in shards for i in range(len(shard))])


def scrub(body: str) -> Callable[[Path], object]:
    """Scrub the cache; a problem that it lists is a refusal."""

    def read(folder: Path) -> None:
        problems = scrub_shard(open_cache(folder / BODIES[body]), TRAIN)
        if problems:
            raise DamageError(str(problems[0]))

    return read


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
    found, state = newest_checkpoint(folder / "run", network, lambda text: None)
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


# the ways to spoil


def sign(path: Path, head: bytes) -> None:
    """Write `head`, whatever it is, with the checksum of our JSON files."""
    digest = hashlib.sha256(head).hexdigest()
    path.write_bytes(head[:-1] + f',"sha256":"{digest}"}}\n'.encode())


def encode(body: Any) -> bytes:
    """The bytes that an enemy would write for a body: ours, but with NaN where there is one."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


Change = Callable[[dict[str, Any]], object]


def edited(path: Path, change: Change) -> str:
    """Change the body of one of our JSON files in place, with a good checksum; return that."""
    body = read_json(path)
    change(body)
    sign(path, encode(body))
    return hashlib.sha256(encode(body)).hexdigest()


def edit_index(change: Change) -> Callable[[Path], object]:
    """Change the index of the picture shard; dataset.json names the new one."""

    def make(folder: Path) -> None:
        digest = edited(folder / "shards" / f"{TRAIN}.json", change)
        tar = folder / "shards" / f"{TRAIN}.tar"
        facts = {"index_sha256": digest, "size": tar.stat().st_size}
        edit_dataset(lambda body: body["shards"][0].update(facts))(folder)

    return make


def edit_dataset(change: Change) -> Callable[[Path], object]:
    """Change dataset.json, and its digest of the shards with it."""

    def change_all(body: dict[str, Any]) -> None:
        change(body)
        lines = (
            f"{s.get('split')}-{s.get('number')!s:0>6} {s.get('rows')} {s.get('pictures')}\n"
            for s in body["shards"]
        )
        total = hashlib.sha256("".join(lines).encode()).hexdigest()
        body["digest"] = total if body["digest"] else body["digest"]

    return edit_file("shards/dataset.json", change_all)


def edit_identity(change: Change) -> Callable[[Path], object]:
    """Change the identity of the cache, and make its shard agree."""

    def make(folder: Path) -> None:
        fingerprint = edited(folder / "cache-zarr" / "identity.json", change)
        record = folder / SHARD["zarr"] / "shard.json"
        edited(record, lambda body: body.update(fingerprint=fingerprint))

    return make


def edit_record(change: Change, body: str = "zarr") -> Callable[[Path], object]:
    """Change shard.json."""
    return lambda folder: edited(folder / SHARD[body] / "shard.json", change)


def edit_file(name: str, change: Change) -> Callable[[Path], object]:
    """Change any of our JSON files."""
    return lambda folder: edited(folder / name, change)


def edit_student(change: Change) -> Callable[[Path], object]:
    """Change student.json."""
    return edit_file("run/student.json", change)


def rehash(run: Path) -> None:
    """Make student.json name the weights that lie there."""
    facts = {"weights_sha256": file_sha256(run / "student.safetensors")}
    edited(run / "student.json", lambda body: body.update(facts))


def sparse(path: Path, size: int, head: bytes = b"") -> None:
    """Write a file of that size that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a file of the published shard, and make shard.json agree."""
    path = folder / name
    path.write_bytes(data)
    shard = folder / (SHARD["tar"] if name.startswith(SHARD["tar"]) else SHARD["zarr"])
    facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    inside = path.relative_to(shard).as_posix()
    edited(shard / "shard.json", lambda body: body["files"].update({inside: facts}))
