"""S1 from pictures to scores: a teacher of one's own, one cache, three students over one set of
shards.
"""

from pathlib import Path

import pytest

from stillroom.cache import open_cache
from stillroom.jsonfile import read_json

pytestmark = [pytest.mark.shared, pytest.mark.slow, pytest.mark.timeout(300)]
STUDENTS = ("fcn-mobilenet-plain", "fcn-mobilenet-response", "fcn-mobilenet-feature")


@pytest.fixture(scope="module")
def commands(load_module):
    return load_module("recipes/real_pictures.py")


@pytest.fixture(scope="module")
def folder(shared, commands, tmp_path_factory) -> Path:
    """Everything that the recipes' commands leave behind, of 24 + 8 street scenes at 64 x 64; no
    weights are downloaded.
    """
    folder = tmp_path_factory.mktemp("s1")
    source = commands.some_of(shared / "data" / "camvid11", folder / "voc", 24, 8)
    shards = ("--out", folder / "shards", "--size", 64, 64, "--fit", "letterbox")
    commands.call("tools/make_shards.py", f"voc:{source}", *shards)
    flags = ("--data.shards", folder / "shards", "--run.cache", folder / "cache", "--batch", 8)
    flags = (*flags, "--micro-batch", 8, "--epochs", 2, "--run.out", folder / "runs")
    flags = (*flags, "--student.weights", "None", "--student.classes", 11, "--run.device", "cpu")
    flags = (*flags, "--run.log-every", 1)
    commands.call("train_student.py", "fcn-mobilenet-teacher", *flags, "--epochs", 1)
    weights = folder / "runs" / "fcn-mobilenet-teacher" / "student.safetensors"
    teacher = ("--teachers.0.weights", weights, "--teachers.0.classes", 11)
    words = ("fcn-mobilenet-response", *flags, *teacher, "--gate", "off")
    commands.call("tools/cache_teacher.py", *words)
    for name in STUDENTS:
        more = () if name.endswith("plain") else teacher
        commands.call("train_student.py", name, *flags, *more)
        commands.call("tools/evaluate.py", folder / "runs" / name)
    return folder


def test_response_and_feature_read_one_cache_at_the_students_grid(folder):
    (path,) = (folder / "cache").iterdir()
    assert path.name.startswith("fcn-mobilenet-response-")
    cache = open_cache(path)
    assert cache.is_complete
    shapes = {name: spec.shape for name, spec in cache.specs.items()}
    assert shapes == {
        "voc": (11, 64, 64),
        "layer1": (256, 4, 4),
        "layer2": (512, 4, 4),
        "layer3": (1024, 4, 4),
        "layer4": (2048, 4, 4),
    }
    plain, *others = (read_json(folder / "runs" / n / "receipt.json")["cache"] for n in STUDENTS)
    assert plain is None
    assert [other["name"] for other in others] == [path.name] * 2


def test_classes_are_counted_once_and_weigh_the_same_in_all_three(folder):
    (counts,) = (folder / "shards").glob("class-pixels-*.json")
    pixels = read_json(counts)["pixels"]
    inverse = [1 / count if count else 0.0 for count in pixels]
    wanted = [11 * value / sum(inverse) for value in inverse]
    for name in STUDENTS:
        recipe = read_json(folder / "runs" / name / "recipe.json")["recipe"]
        assert recipe["terms"][0]["class_weights"] == pytest.approx(wanted)


def test_the_losses_are_those_of_the_three_strategies(folder, commands):
    def first(name: str) -> dict:
        return commands.lines_of(folder / "runs" / name, "train")[0]

    plain, response, feature = map(first, STUDENTS)
    assert plain["loss"] == pytest.approx(plain["term_ce"])
    assert response["loss"] == pytest.approx(0.5 * response["term_ce"] + 0.5 * response["term_kl"])
    layers = [feature[f"term_feature_cosine_{i}"] for i in range(4)]
    wanted = feature["term_ce"] + 0.1 * sum(layers) + 0.5 * feature["term_logit_cosine"]
    assert feature["loss"] == pytest.approx(wanted)
    assert len({round(layer, 6) for layer in layers}) == 4
    ce = [line["term_ce"] for line in (plain, response, feature)]
    assert ce == pytest.approx([ce[0]] * 3)  # the same first student on the same pictures


def test_all_three_are_scored_on_the_same_pictures(folder):
    found = [read_json(folder / "runs" / name / "evaluation.json") for name in STUDENTS]
    assert len({each["pictures"] for each in found}) == 1
    assert all(0 < each["miou"] < 1 for each in found)
    receipts = [read_json(folder / "runs" / name / "receipt.json") for name in STUDENTS]
    assert len({each["parameters"] for each in receipts}) == 1
