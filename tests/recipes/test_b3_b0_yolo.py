"""S3 from COCO's annotations to scores: a mask teacher in Lightning's form, a detector's inner
tensor, one cache, students whose encoder is free, in stages, or frozen.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import load_file

from stillroom.cache import Cache, open_cache
from stillroom.cli import recipe_from
from stillroom.jsonfile import read_json
from stillroom.recipes import b3_b0
from stillroom.students.distiller import build_distiller
from stillroom.training.parameters import frozen_parameters, parameters_in_parts
from stillroom.types import TargetSpec

shared_and_slow = [pytest.mark.shared, pytest.mark.slow, pytest.mark.timeout(400)]
NUM_TRAIN, NUM_VAL, EDGE, MEAN, STD = 24, 8, 96, ".485 .456 .406", ".229 .224 .225"
WEIGHTS = {"kl": 1.0, "logit_mse": 0.5, "feature_mse": 0.5, "bce": 0.5, "dice": 1.0}
DISTILLED = ("kl", "logit_mse", "feature_mse")


def documented(first: str, last: str) -> list[str]:
    """The flags that the recipe's docstring gives, from one to the value of another."""
    assert b3_b0.__doc__ is not None
    text = " ".join(b3_b0.__doc__.split())
    found = re.search(rf"{first} .*?{last} \S+", text)
    assert found is not None
    return [word.rstrip(";") for word in found[0].split()]


STAGED = documented("--freeze encoder.blocks.6", "--freeze-lr")
FROZEN = documented("--freeze encoder", "--terms.4.tap")[-4:]
LIGHT = documented("--augment.photometric", "--augment.jpeg")
BALANCE = documented("--distill-weight", "--distill-fade")


def test_the_documented_flags_are_the_light_augmentation():
    assert recipe_from(["b3-b0-yolo"]).augment == b3_b0.HEAVY
    assert recipe_from(["b3-b0-yolo", *LIGHT]).augment == b3_b0.LIGHT


def test_the_documented_stages_free_the_encoder_from_the_deepest_block():
    recipe = recipe_from(["b3-b0-yolo", "--student.weights", "None", *STAGED])
    distiller = build_distiller(recipe.student, recipe.terms, _specs(), (64, 64))
    encoder: Any = distiller.student.encoder
    every = set(map(id, encoder.parameters()))
    assert set(map(id, parameters_in_parts(distiller, recipe))) == every
    for epoch, blocks in ((0, 0), (4, 0), (5, 1), (7, 1), (8, 2), (25, 7)):
        free = every - set(map(id, frozen_parameters(distiller, recipe, epoch)))
        trains = encoder.blocks[7 - blocks :] if blocks else []
        assert free == {id(p) for block in trains for p in block.parameters()}, epoch
    assert not frozen_parameters(distiller, recipe, 26)


def _specs() -> dict[str, TargetSpec]:
    person = TargetSpec(name="person", shape=(1, 64, 64), stride=1, kind="logits")
    yolo = TargetSpec(name="yolo", shape=(16, 8, 8), stride=8, kind="features")
    return {"person": person, "yolo": yolo}


@pytest.fixture(scope="module")
def commands(load_module):
    return load_module("recipes/real_pictures.py")


def as_coco(source: Path, split: str, count: int, out: Path) -> str:
    """Write the masks of the first pictures of a VOC split as COCO's run lengths; a source."""
    images, annotations = [], []
    names = (source / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()[:count]
    for number, name in enumerate(names):
        mask = np.asarray(Image.open(source / "SegmentationClass" / f"{name}.png")) == 1
        runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        runs["counts"] = runs["counts"].decode()
        size = {"height": mask.shape[0], "width": mask.shape[1]}
        images.append({"id": number, "file_name": f"{name}.jpg", **size})
        # the last is of no person, so its picture is not packed
        category = 1 if number < count - 1 else 18
        about = {"image_id": number, "category_id": category, "iscrowd": 0}
        annotations.append({"id": number, **about, "segmentation": runs})
    kinds = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    out.write_text(json.dumps({"images": images, "annotations": annotations, "categories": kinds}))
    return f"coco:{source / 'JPEGImages'},{out}"


@pytest.fixture(scope="module")
def folder(shared, commands, tmp_path_factory) -> Path:
    """Pictures of COCO's kind at 96 x 96, and the weights of a mask teacher, trained shortly."""
    folder, people = tmp_path_factory.mktemp("s3"), shared / "data" / "people"
    train = as_coco(people, "train", NUM_TRAIN + 1, folder / "train.json")
    val = as_coco(people, "val", NUM_VAL + 1, folder / "val.json")
    options = ("--val", val, "--categories", "person", "--size", EDGE, EDGE)
    commands.call("tools/make_shards.py", train, *options, "--out", folder / "shards")
    words = ["people-teacher", "--student.encoder", "timm-efficientnet-b0", "--epochs", 4]
    words += ["--student.mean", *MEAN.split(), "--student.std", *STD.split()]
    commands.call("train_student.py", *words, *flags_of(folder))
    state = load_file(folder / "runs" / "people-teacher" / "student.safetensors")
    prefixed = {f"model.{name}": value for name, value in state.items()}
    torch.save({"state_dict": prefixed, "epoch": 4}, folder / "teacher.pth")
    return folder


def flags_of(folder: Path) -> list[object]:
    flags = ["--data.shards", folder / "shards", "--run.out", folder / "runs"]
    flags += ["--run.cache", folder / "cache", "--run.device", "cpu", "--run.log-every", 1]
    return [*flags, "--student.weights", "None", "--batch", 4, "--micro-batch", 4]


@pytest.fixture(scope="module")
def words(folder, shared) -> list[object]:
    """`b3-b0-yolo` with a smaller mask teacher and another detector."""
    words = ["b3-b0-yolo", *flags_of(folder), "--teachers.0.path", folder / "teacher.pth"]
    words += ["--teachers.0.encoder", "timm-efficientnet-b0", "--teachers.1.tensor", "input.427"]
    words += ["--teachers.1.path", shared / "models" / "yolox_nano_coco_416.onnx"]
    words += ["--teachers.1.channels", "BGR", "--teachers.1.scale", 255, "--gate", "off"]
    return [*words, "--optimizer.lr", "1e-3", "--terms.4.hidden", 64, "--epochs", 2]


@pytest.fixture(scope="module")
def cache(words, folder, commands) -> Cache:
    said = commands.call("tools/cache_teacher.py", *words)
    dropped = re.search(r"teacher\.pth: 'model\.' before each of (\d+) names was dropped", said)
    assert dropped is not None and int(dropped[1]) > 400
    (path,) = (folder / "cache").iterdir()
    return open_cache(path)


@pytest.fixture(scope="module")
def run(words, folder, cache, commands) -> Path:
    commands.call("train_student.py", *words)
    commands.call("tools/evaluate.py", folder / "runs" / "b3-b0-yolo")
    return folder / "runs" / "b3-b0-yolo"


class TestTheWholeWay:
    pytestmark = shared_and_slow

    def test_one_cache_holds_small_logits_and_small_features_of_persons_only(self, cache):
        assert cache.is_complete
        rows = {s: sum(map(cache.shard_rows, cache.shard_ids(s))) for s in ("train", "val")}
        assert rows == {"train": NUM_TRAIN, "val": NUM_VAL}
        found = {name: (spec.shape, spec.codec) for name, spec in cache.specs.items()}
        assert found == {
            "person": ((1, EDGE, EDGE), "logits8"),
            "yolo": ((128, EDGE // 8, EDGE // 8), "stochastic:6.0"),
        }

    def test_the_loss_is_the_sum_of_five_terms_and_falls(self, run, commands):
        lines = commands.lines_of(run, "train")
        for line in lines:
            terms = {name: line[f"term_{name}"] for name in WEIGHTS}
            wanted = sum(weight * terms[name] for name, weight in WEIGHTS.items())
            assert line["loss"] == pytest.approx(wanted, rel=1e-4)
        half = len(lines) // 2
        first, last = ([line["loss"] for line in part] for part in (lines[:half], lines[half:]))
        assert len(lines) == 2 * NUM_TRAIN // 4 and np.mean(last) < np.mean(first)

    def test_the_student_is_scored_beside_its_teacher(self, run, commands):
        lines = commands.lines_of(run, "val")
        assert len(lines) == 2 and 0 < read_json(run / "evaluation.json")["miou"] < 1
        line = lines[-1]
        assert 0 < line["teacher_miou"] < 1 and 0.3 < line["agreement"] <= 1

    def test_stages_and_a_balance_that_follows_scores_run_as_documented(
        self, words, run, folder, commands
    ):
        staged = [*STAGED, "--freeze-epochs", 1, "--unfreeze-every", 1, "--run.name", "staged"]
        # the tap encoder.3 is block 2's, which is refused unless it is freed before the end
        assert "the tap encoder.3 is distilled" in commands.call(
            "train_student.py", *words, *staged, status=2
        )
        commands.call("train_student.py", *words, *staged, *BALANCE, *LIGHT, "--epochs", 6)
        line = commands.lines_of(folder / "runs" / "staged", "train")[0]
        shares = {name: 0.3 if name in DISTILLED else 0.7 for name in WEIGHTS}
        wanted = sum(w * shares[n] * line[f"term_{n}"] for n, w in WEIGHTS.items())
        assert line["loss"] == pytest.approx(wanted, rel=1e-4)
        first = _first_weights(words)
        free = load_file(run / "student.safetensors")
        late = load_file(folder / "runs" / "staged" / "student.safetensors")
        for number in range(7):
            name = f"encoder.blocks.{number}.0.conv_dw.weight"
            assert torch.equal(late[name], first[name]) == (number < 2)
            assert not torch.equal(free[name], first[name])

    def test_a_frozen_encoder_is_refused_unless_the_decoder_is_tapped(
        self, words, cache, folder, commands
    ):
        frozen = [*words, "--freeze", "encoder", "--run.name", "frozen", "--epochs", 1]
        refused = commands.call("train_student.py", *frozen, status=2)
        assert "the tap encoder.3 is distilled, but nothing before it trains" in refused
        commands.call("train_student.py", *frozen, *FROZEN)
        after = load_file(folder / "runs" / "frozen" / "student.safetensors")
        first = _first_weights(words)
        moved = {name for name, value in after.items() if not torch.equal(value, first[name])}
        assert moved and not any(name.startswith("encoder.") for name in moved)


def _first_weights(words: list[object]) -> dict[str, torch.Tensor]:
    """The student's weights before the first step."""
    from stillroom.training.setup import prepare

    recipe = recipe_from([*map(str, words), "--run.name", "first"])
    return prepare(recipe).distiller.student.state_dict()
