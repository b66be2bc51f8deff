"""Real pictures and real networks: what both stages say is what plain libraries say.

The references use nothing of ours: tarfile, Pillow, numpy, zarr, webdataset and onnxruntime.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.cache import Cache, open_cache
from stillroom.jsonfile import read_json
from stillroom.metrics import confusion, iou, miou, predict
from stillroom.pictures.dataset import open_pictures

pytestmark = [pytest.mark.shared, pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[1]
TENSOR, EDGE, NUM_TRAIN = "input.427", 256, 16
CLAMP = 2.0**-20  # docs: probabilities are kept as log-odds of at most 13.86
HALF = 2.0**-11  # largest relative error of rounding to half precision

# Put first on PYTHONPATH, this notes and refuses every real import of what stage 2 may not need.
# Asking whether a module exists, as torch and accelerate do, is no import.
GUARD = """
import importlib.abc, importlib.machinery, os, sys
NEVER = ("onnx", "onnxruntime", "stillroom.extraction", "stillroom.teachers.onnx",
         "stillroom.teachers.onnx_file", "stillroom.teachers.torch")
class Guard(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name in NEVER else None
    def create_module(self, spec):
        with open(os.environ["NOTICED"], "a") as file:
            file.write(spec.name + "\\n")
        raise RuntimeError(f"{spec.name} was imported")
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Guard())
"""


def call(*words: object, environment: dict[str, str] | None = None, status: int = 0) -> str:
    """Run Python with one thread and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def pictures(shared, tmp_path_factory) -> Path:
    """The first 16 training pictures and the whole validation split, packed at 256 x 256."""
    source, folder = shared / "data" / "people", tmp_path_factory.mktemp("people")
    lists = folder / "voc" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass", "classes.txt"):
        (folder / "voc" / name).symlink_to(source / name)
    for split, count in (("train", NUM_TRAIN), ("val", None)):
        names = (source / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        (lists / f"{split}.txt").write_text("\n".join(names[:count]))
    out = folder / "shards"
    call("tools/make_shards.py", f"voc:{folder / 'voc'}", "--out", out, "--size", EDGE, EDGE)
    return out


@pytest.fixture(scope="module")
def flags(shared, pictures, tmp_path_factory) -> list[object]:
    """`people-lite` as a user would say it."""
    models = shared / "models"
    words = ["people-lite", "--data.shards", pictures, "--teachers.1.tensor", TENSOR]
    words += ["--teachers.0.path", models / "prisma_people_256.onnx"]
    words += ["--teachers.1.path", models / "yolox_nano_coco_416.onnx"]
    words += ["--codec.person", "float16", "--codec.detector", "float16", "--run.device", "cpu"]
    return [*words, "--run.cache", tmp_path_factory.mktemp("cache")]


@pytest.fixture(scope="module")
def cache(flags) -> Cache:
    """What stage 1 kept; the quality gate lets both teachers pass."""
    assert "complete" in call("tools/cache_teacher.py", *flags)
    (path,) = Path(str(flags[-1])).iterdir()
    return open_cache(path)


@pytest.fixture(scope="module")
def members(pictures) -> dict[str, bytes]:
    """Every member of the validation shard, read by tarfile."""
    with tarfile.open(pictures / "val-000000.tar") as tar:
        files = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read() for name, file in files.items() if file is not None}


@pytest.fixture(scope="module")
def decoded(members) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Picture (h w 3, uint8, RGB) and mask of each validation key."""
    keys = sorted(name.removesuffix(".jpg") for name in members if name.endswith(".jpg"))
    return {
        key: (
            np.asarray(Image.open(io.BytesIO(members[f"{key}.jpg"])).convert("RGB")),
            np.asarray(Image.open(io.BytesIO(members[f"{key}.mask.png"]))),
        )
        for key in keys
    }


@pytest.fixture(scope="module")
def probabilities(shared, decoded) -> dict[str, np.ndarray]:
    """What plain onnxruntime says of each validation picture, one at a time."""
    session = open_session(shared / "models" / "prisma_people_256.onnx")
    (name,) = (tensor.name for tensor in session.get_inputs())
    return {
        key: session.run(None, {name: image.transpose(2, 0, 1)[None] / np.float32(255)})[0][0]
        for key, (image, _) in decoded.items()
    }


def open_session(network: Path | bytes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    given = network if isinstance(network, bytes) else str(network)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def plain_ious(decoded, probabilities) -> list[float]:
    """IoU of background and person over the data set, by counting pixels in numpy."""
    both, either = np.zeros(2), np.zeros(2)
    for key, (_, mask) in decoded.items():
        known = mask != 255
        for label in (0, 1):
            said, true = (probabilities[key][0] > 0.5) == label, mask == label
            both[label] += (said & true & known).sum()
            either[label] += ((said | true) & known).sum()
    return list(both / either)


def plain_rows(cache: Cache, target: str) -> dict[str, np.ndarray]:
    """Every validation row of a target, read by zarr; the keys come from shard.json."""
    import zarr

    folder = cache.path / "val-000000.zarr"
    array = zarr.open_group(folder, mode="r")[f"{target}.value"]
    assert isinstance(array, zarr.Array) and array.dtype == np.float16
    values = np.asarray(array[:], np.float32)
    keys = json.loads((folder / "shard.json").read_text())["rows"]["key"]
    return dict(zip(keys, values, strict=True))


def test_small_targets_of_real_teachers_are_forty_times_smaller_and_run_again(
    flags, pictures, cache, tmp_path
):
    """Stochastic rounding of features, fitted on the 16 training pictures, and 8 bits of logits."""
    words = ["--codec.detector", "stochastic:6", "--codec.person", "logits8"]
    small = [*flags[:-1], tmp_path, *words]
    assert "complete" in call("tools/cache_teacher.py", *small)
    (path,) = tmp_path.iterdir()
    coded, (shard, *_) = open_cache(path), cache.shard_ids("val")
    with coded.reader(shard) as reader:
        spans, errors = reader.shard_index.spans, reader.errors["detector"]
    with cache.reader(shard) as reader:
        exact = reader.shard_index.spans
        values = np.stack([reader.read(i)["detector.value"] for i in range(len(reader))])
    two_bytes = 2 * values[0].size
    assert np.mean(spans["detector.impulse"].size) < two_bytes / 40
    assert np.mean(spans["person.difference"].size) < np.mean(exact["person.value"].size) / 4
    away = values.astype(np.float64) - coded.fitted["detector"]["offset"].numpy()
    assert np.mean(errors) / np.square(away).mean() == pytest.approx(6, rel=0.15)
    report = call("tools/check_cache.py", path, *small, "--rerun", 8)
    assert "detector: 8 rows compared, 0 wrong" in report
    assert "person: 8 rows compared, 0 wrong" in report


def test_the_cached_teachers_iou_is_that_of_plain_onnxruntime(
    cache, pictures, decoded, probabilities
):
    import torch

    packed, table = open_pictures(pictures), torch.zeros(2, 2, dtype=torch.int64)
    for shard in cache.shard_ids("val"):
        with cache.reader(shard) as reader:
            for i, row in enumerate(reader.rows):
                logits = torch.from_numpy(reader.read(i)["person.value"]).float()
                picture = packed.open(shard).read(i)
                assert picture.key == row.key and picture.mask is not None
                mask = torch.from_numpy(picture.mask).long()
                table += confusion(predict(logits[None]), mask[None], 2)
    wanted = plain_ious(decoded, probabilities)
    assert iou(table).tolist() == pytest.approx(wanted, abs=2e-4)
    assert float(miou(table)) == pytest.approx(np.mean(wanted), abs=2e-4)
    assert wanted[1] == pytest.approx(0.839, abs=2e-3)


def test_a_person_row_in_plain_zarr_is_the_log_odds_of_plain_onnxruntime(cache, probabilities):
    rows = plain_rows(cache, "person")
    assert rows.keys() == probabilities.keys()
    for key, probability in probabilities.items():
        p = probability.astype(np.float64).clip(CLAMP, 1 - CLAMP)
        wanted = np.log(p) - np.log1p(-p)
        # the network's float32 output moves by some 1e-6 with the size of the batch
        allowed = HALF * abs(wanted) + 2e-6 / (p * (1 - p)) + 1e-4
        assert (abs(rows[key] - wanted) <= allowed).all(), key


def test_a_detector_row_in_plain_zarr_is_the_inner_tensor_of_plain_onnxruntime(
    cache, shared, decoded, tmp_path
):
    import onnx

    # another way to the tensor than ours: onnx's own extraction, then new dimensions
    network = shared / "models" / "yolox_nano_coco_416.onnx"
    onnx.utils.extract_model(str(network), str(tmp_path / "cut.onnx"), ["images"], [TENSOR])
    model = onnx.load(str(tmp_path / "cut.onnx"))
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = EDGE
    model.graph.ClearField("value_info")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    session = open_session(model.SerializeToString())
    rows = plain_rows(cache, "detector")
    assert rows.keys() == decoded.keys()
    for key, (image, _) in list(decoded.items())[::5]:
        bgr = image[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32)
        wanted = session.run(None, {"images": bgr})[0][0]
        assert rows[key].shape == wanted.shape == (128, EDGE // 8, EDGE // 8)
        allowed = HALF * abs(wanted) + 1e-5 * abs(wanted).max()
        assert (abs(rows[key] - wanted) <= allowed).all(), key


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file left open
def test_picture_shards_stream_through_plain_webdataset_with_equal_bytes(pictures, members):
    import webdataset

    shard = open_pictures(pictures).open(open_pictures(pictures).shard_ids("val")[0])
    stream = webdataset.WebDataset(str(pictures / "val-000000.tar"), shardshuffle=False)
    seen = []
    for i, sample in enumerate(stream):
        key = sample["__key__"]
        seen.append(key)
        assert sample["jpg"] == members[f"{key}.jpg"] == shard.read_bytes(i, "picture")
        assert sample["mask.png"] == members[f"{key}.mask.png"] == shard.read_bytes(i, "mask")
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(sample["jpg"]))), shard.read(i).image
        )
    assert tuple(seen) == shard.keys and len(seen) == 100


def test_stage_2_imports_no_teacher_and_prints_its_iou_all_the_same(
    cache, flags, shared, decoded, probabilities, tmp_path
):
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    noticed = tmp_path / "noticed"
    path = [str(tmp_path / "guard"), *filter(None, [os.environ.get("PYTHONPATH")])]
    guarded = {"PYTHONPATH": os.pathsep.join(path), "NOTICED": str(noticed)}
    for name in ("onnx", "onnxruntime"):  # the guard works
        said = call("-c", f"import {name}", environment=guarded, status=1)
        assert f"{name} was imported" in said
    assert noticed.read_text().split() == ["onnx", "onnxruntime"]
    noticed.unlink()

    weights = shared / "models" / "mobilenetv2_035_timm.pth"
    words = [*flags, "--student.weights", weights, "--run.out", tmp_path, "--epochs", 1]
    launch = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    said = call(*launch, "train_student.py", *words, environment=guarded)
    run = tmp_path / "people-lite"
    assert not noticed.exists(), noticed.read_text()
    assert read_json(run / "receipt.json")["teacher_modules"] == []
    assert "teacher files are not here" not in said

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = plain_ious(decoded, probabilities)
    assert lines[-1]["teacher_iou"] == pytest.approx(wanted, abs=2e-4)
    printed = re.findall(r"teacher \w+ IoU (0\.\d+)", said)
    assert [float(text) for text in printed] == [pytest.approx(wanted[1], abs=2e-4)]
