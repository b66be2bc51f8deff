"""A micro-batch that the device does not hold is answered with one that was tried and fits."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from stillroom.cache.folder import Cache, open_cache
from stillroom.errors import UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.losses import CrossEntropy, SoftKL
from stillroom.recipe import Recipe
from stillroom.teachers.configs import OnnxTeacher
from stillroom.teachers.own_configs import TorchTeacher
from stillroom.types import ShardId

TOOL = Path(__file__).parents[2] / "tools" / "cache_teacher.py"
SHARDS = (*(ShardId("train", number) for number in range(3)), ShardId("val", 0))
NETWORK = """
import pathlib

import torch
from torch import nn


class Filling(nn.Module):
    '''A 1x1 convolution on a device that holds so many rows; `calls` are those of a process.'''

    calls = []

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        self.calls.append(len(image))
        early, later, of = LIMITS
        if len(image) > (early if len(self.calls) <= of else later):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.conv(image)
"""
RECIPE = """
from dataclasses import replace

from stillroom.losses import CrossEntropy, SoftKL
from stillroom.recipe import Data, Run
from stillroom.recipes.tiny import tiny
from stillroom.teachers.own_configs import TorchTeacher


def recipe():
    return replace(
        tiny(),
        data=Data(shards=SHARDS),
        teachers=(TorchTeacher(target="shapes", factory=FACTORY),),
        terms=(CrossEntropy(weight=1.0), SoftKL(target="shapes", weight=1.0)),
        codec={},
        gate="warn",
        run=Run(cache=CACHE, device="cpu"),
    )
"""


@pytest.fixture
def filling(tiny_recipe, tmp_path):
    """The recipe `tiny` with such a network, which holds `early` rows in its first `of` calls, and
    `later` rows from then on.
    """

    def filling(early: int, later: int = 0, of: int = 10**9, **fields) -> Recipe:
        path = tmp_path / "filling.py"
        path.write_text(f"{NETWORK}\n\nLIMITS = ({early}, {later}, {of})\n")
        teacher = TorchTeacher(target="shapes", factory=f"{path}:Filling")
        return with_teacher(tiny_recipe, teacher, tmp_path / "cache", **fields)

    return filling


def with_teacher(recipe: Recipe, teacher, cache: Path, **fields) -> Recipe:
    """The same recipe with another teacher, and only the terms that it serves."""
    terms = (CrossEntropy(weight=1.0), SoftKL(target="shapes", weight=1.0))
    run = replace(recipe.run, cache=str(cache))
    fields = {"batch": 8, "micro_batch": 8, **fields}
    return replace(recipe, teachers=(teacher,), terms=terms, codec={}, run=run, **fields)


def cache_of(recipe: Recipe) -> Cache:
    (folder,) = Path(recipe.run.cache).iterdir()
    return open_cache(folder)


@pytest.mark.parametrize(
    ("holds", "batch", "micro_batch", "named"), [(3, 8, 8, 2), (7, 24, 24, 6), (1, 8, 4, 1)]
)
def test_the_largest_micro_batch_that_cuts_the_batch_and_fits_is_named(
    filling, holds, batch, micro_batch, named
):
    recipe = filling(holds, batch=batch, micro_batch=micro_batch)
    with pytest.raises(UserError, match=rf"--micro-batch {named} \(tried") as caught:
        cache_teacher(recipe, ProcessContext())
    assert caught.value.what == f"the memory of cpu does not hold --micro-batch {micro_batch}"
    assert caught.value.found == "CUDA out of memory. Tried to allocate 20.00 GiB."
    done = cache_teacher(replace(recipe, micro_batch=named), ProcessContext())
    assert done.is_complete and done.path == cache_of(recipe).path


def test_where_not_even_one_picture_fits_no_size_is_named(filling):
    with pytest.raises(UserError, match="no smaller one fits") as caught:
        cache_teacher(filling(0), ProcessContext())
    assert "tried" not in str(caught.value)
    with pytest.raises(UserError, match="no smaller one fits"):
        cache_teacher(filling(0, micro_batch=1), ProcessContext())


def test_memory_that_runs_out_within_a_shard_leaves_the_shards_before_it_and_no_part(filling):
    # one row for the probe, a batch for each shard: the second of these is one too many
    recipe = filling(8, later=5, of=2)
    with pytest.raises(UserError, match="--micro-batch 4"):
        cache_teacher(recipe, ProcessContext())
    cache = cache_of(recipe)
    assert cache.missing() == SHARDS[1:]
    assert list((cache.path / "tmp").iterdir()) == []


def test_memory_that_the_codecs_want_is_counted(filling, monkeypatch):
    encode = Cache.encode

    def encoding(self, name, target, rows):
        if len(target) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(self, name, target, rows)

    monkeypatch.setattr(Cache, "encode", encoding)
    with pytest.raises(UserError, match="--micro-batch 2"):
        cache_teacher(filling(8), ProcessContext())


def test_another_error_is_not_answered_so(filling, monkeypatch):
    def broken(self, name, target, rows):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Cache, "encode", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        cache_teacher(filling(8), ProcessContext())


def test_the_gate_looks_at_no_more_pictures_at_once_than_the_micro_batch(filling):
    recipe = filling(2, micro_batch=2, gate="warn")
    assert cache_teacher(recipe, ProcessContext()).is_complete


def filling_onnx(path: Path) -> Path:
    """Write a network that wants 2 ** (20 * rows - 110) values more: none for 4, 4.5 PB for 8."""
    constants = {
        "factor": np.float64(20),
        "less": np.float64(110),
        "two": np.float64(2),
        "weight": np.ones((4, 3, 1, 1), np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Shape", ["image"], ["rows"], start=0, end=1),
        node("Cast", ["rows"], ["rows_double"], to=TensorProto.DOUBLE),
        node("Mul", ["rows_double", "factor"], ["product"]),
        node("Sub", ["product", "less"], ["exponent"]),
        node("Pow", ["two", "exponent"], ["power"]),
        node("Cast", ["power"], ["length"], to=TensorProto.INT64),
        node("ConstantOfShape", ["length"], ["zeros"]),
        node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        node("Conv", ["image", "weight"], ["logits"]),
        node("Add", ["logits", "zero"], ["output"]),
    ]
    image, output = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", c, "h", "w"])
        for name, c in (("image", 3), ("output", 4))
    )
    weights = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "filling", [image], [output], weights)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_what_onnxruntime_says_when_memory_runs_out_is_answered_so(tiny_recipe, tmp_path, device):
    path = filling_onnx(tmp_path / "filling.onnx")
    teacher = OnnxTeacher(target="shapes", kind="logits", path=str(path))
    recipe = with_teacher(tiny_recipe, teacher, tmp_path / "cache")
    with pytest.raises(UserError, match="--micro-batch 4") as caught:
        cache_teacher(recipe, ProcessContext(device=device))
    assert "Failed to allocate memory" in str(caught.value.found)


def test_the_command_says_one_paragraph_exits_2_and_the_size_that_it_names_works(
    tiny_world, filling, tmp_path
):
    factory = filling(3).teachers[0].factory
    values = {
        "SHARDS": str(tiny_world / "shards"),
        "FACTORY": factory,
        "CACHE": str(tmp_path / "cache"),
    }
    file = tmp_path / "recipes.py"
    file.write_text(RECIPE + "".join(f"\n{name} = {value!r}" for name, value in values.items()))

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, TOOL, f"{file}:recipe", "--batch", "8", *flags],
            capture_output=True,
            text=True,
            check=False,
        )

    failed = run("--micro-batch", "8")
    assert failed.returncode == 2, failed.stderr
    assert "Traceback" not in failed.stderr
    paragraph = failed.stderr[failed.stderr.index("stillroom: ") :].splitlines()
    assert [line[:9] for line in paragraph] == ["stillroom", "  found: ", "  fix:   "]
    assert "--micro-batch 2 (tried" in paragraph[2]
    done = run("--micro-batch", "2")
    assert done.returncode == 0, done.stderr
