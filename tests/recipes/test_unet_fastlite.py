"""S0 from pictures to scores: a teacher, its five features, students without and with them."""

from pathlib import Path

import numpy as np
import pytest

from stillroom.cache import open_cache
from stillroom.jsonfile import read_json

pytestmark = [pytest.mark.shared, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def commands(load_module):
    return load_module("recipes/real_pictures.py")


@pytest.fixture(scope="module")
def folder(shared, commands, tmp_path_factory) -> Path:
    """Everything that the recipes' commands leave behind, of 24 + 6 street scenes at 96 x 128."""
    folder = tmp_path_factory.mktemp("s0")
    source = commands.some_of(shared / "data" / "camvid11", folder / "voc", 24, 6)
    shards = ("--out", folder / "shards", "--size", 96, 128, "--fit", "letterbox")
    commands.call("tools/make_shards.py", f"voc:{source}", *shards)
    data = ("--data.shards", folder / "shards", "--run.cache", folder / "cache")
    small = ("--batch", 4, "--micro-batch", 4, "--epochs", 1, "--student.classes", 11)
    flags = (*data, *small, "--run.out", folder / "runs", "--run.device", "cpu")
    flags = (*flags, "--run.log-every", 1)
    random = ("--student.weights", "None", "--freeze-epochs", 0)
    commands.call("train_student.py", "unet-fastlite-teacher", *flags, *random)
    teacher = ("--teachers.0.path", folder / "runs" / "unet-fastlite-teacher", "--views.count", 2)
    words = ("unet-fastlite", *flags, *teacher)
    commands.call("tools/cache_teacher.py", *words, "--gate", "warn")
    commands.call("train_student.py", "unet-fastlite-plain", *flags)
    commands.call("train_student.py", *words)
    for name in ("unet-fastlite-plain", "unet-fastlite"):
        commands.call("tools/evaluate.py", folder / "runs" / name)
    return folder


def test_five_features_of_every_view_are_kept_at_the_strides_of_the_recipe(folder):
    (path,) = (folder / "cache").iterdir()
    cache = open_cache(path)
    assert cache.is_complete
    assert sum(map(cache.shard_rows, cache.shard_ids())) == 2 * 24 + 6
    shapes = {name: spec.shape for name, spec in cache.specs.items()}
    assert shapes == {
        "voc": (11, 96, 128),
        "f1": (64, 12, 16),
        "f2": (128, 12, 16),
        "f3": (256, 12, 16),
        "f4": (512, 12, 16),
        "f5": (512, 6, 8),
    }


def test_each_feature_is_learned_besides_the_labels(folder, commands):
    lines = commands.lines_of(folder / "runs" / "unet-fastlite", "train")
    terms = [name for name in lines[0] if name.startswith("term_")]
    assert terms == ["term_ce", *(f"term_cs_{i}" for i in range(5)), "term_dice"]
    for name in terms:
        values = [line[name] for line in lines]
        assert len(values) == 6 and np.isfinite(values).all() and min(values) > 0, name
        if name != "term_dice":  # at random weights it hardly moves in six steps
            assert np.mean(values[-2:]) < np.mean(values[:2]), name


def test_both_students_are_scored_and_the_cheaper_one_is_the_same_network(folder):
    found = [
        read_json(folder / "runs" / name / "evaluation.json")
        for name in ("unet-fastlite-plain", "unet-fastlite")
    ]
    assert all(0 < each["miou"] < 1 and len(each["iou"]) == 11 for each in found)
    plain, distilled = (
        read_json(folder / "runs" / name / "receipt.json")
        for name in ("unet-fastlite-plain", "unet-fastlite")
    )
    assert plain["parameters"] == distilled["parameters"]
    assert plain["cache"] is None and distilled["teacher_modules"] == []
