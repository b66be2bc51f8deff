"""S4 from several people on a picture to scores: a teacher, its cache, students with and without
it; what does not fit is refused before any work.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.checking.check import check_cache
from stillroom.cli import recipe_from
from stillroom.errors import UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.losses import CrossEntropy
from stillroom.pictures.dataset import PictureShard, open_pictures
from stillroom.pictures.make import make_shards
from stillroom.pictures.pixels import pixels_crc32c
from stillroom.pictures.rows import picture_of
from stillroom.pictures.run_lengths import run_lengths
from stillroom.students.definitions import UNetStudent
from stillroom.students.distiller import build_distiller
from stillroom.training.loop import train
from stillroom.training.setup import prepare
from stillroom.using.student import load_student

SMALL = ["--student.encoder", "tu-mobilenetv2_035", "--student.cells", "8", "8"]
SMALL += ["--student.channels", "16", "--student.base", "4", "--student.weights", "None"]
REGIONS = ["--data.regions", "16", "16"]


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    """Twelve pictures of two discs, each an instance, which overlap."""
    folder = tmp_path_factory.mktemp("discs")
    (folder / "images").mkdir()
    images, annotations, draw = [], [], np.random.default_rng(0)
    for number in range(12):
        picture = draw.integers(0, 90, (64, 64, 3), np.uint8)
        for side in range(2):
            x, y = 20 + 20 * side + draw.integers(-3, 4), draw.integers(24, 40)
            mask = np.hypot(*np.ogrid[-y : 64 - y, -x : 64 - x]) < 15
            picture[mask] = draw.integers(140, 256, 3, np.uint8)
            about = {"image_id": number, "category_id": 1, "iscrowd": 0}
            runs = {"size": [64, 64], "counts": run_lengths(mask)}
            annotations.append({**about, "segmentation": runs})
        Image.fromarray(picture).save(folder / "images" / f"p{number}.png")
        images.append({"id": number, "file_name": f"p{number}.png", "height": 64, "width": 64})
    body = {"images": images, "annotations": annotations}
    body["categories"] = [{"id": 1, "name": "person"}]
    (folder / "all.json").write_text(json.dumps(body))
    source = f"coco:{folder / 'images'},{folder / 'all.json'}"
    make_shards(source, out=folder / "shards", val_share=0.3, size=(64, 64), format="png")
    return folder


def words(discs: Path, recipe: str, *more: str) -> list[str]:
    found = [recipe, *SMALL, *REGIONS, "--data.shards", str(discs / "shards"), "--epochs", "2"]
    found += ["--run.out", str(discs / "runs"), "--run.cache", str(discs / "cache")]
    return [*found, "--run.device", "cpu", "--optimizer.lr", "3e-3", *more]


def test_a_student_of_boxes_and_rows_that_are_pictures_are_refused_both_ways(discs):
    recipe = recipe_from(words(discs, "b3-b0-hierarchical-plain"))
    other = replace(recipe, data=replace(recipe.data, regions=(8, 8)))
    with pytest.raises(UserError, match=r"cells of a region(.|\n)*--data\.regions 16 16"):
        prepare(other)
    student = UNetStudent(classes=3)
    with pytest.raises(UserError, match=r"cells of a region(.|\n)*a student that takes boxes"):
        prepare(replace(recipe, student=student, terms=(CrossEntropy(),)))
    network = recipe.student
    with pytest.raises(UserError, match=r"looks at boxes(.|\n)*--data\.regions 16 16"):
        build_distiller(network, (CrossEntropy(),), {}, (64, 64))


def test_teacher_cache_student_resume_and_what_is_kept(discs):
    teacher = words(discs, "b3-b0-hierarchical-teacher", "--student.unet", "None", "--freeze")
    run = train(recipe_from(teacher))
    told = ["--teachers.0.path", str(run), "--gate", "warn"]
    recipe = recipe_from(words(discs, "b3-b0-hierarchical", *told))
    cache = cache_teacher(recipe, ProcessContext())
    shapes = {name: spec.shape for name, spec in cache.specs.items()}
    assert shapes == {"region": (3, 16, 16), "bg_fg": (2, 16, 16), "whose": (2, 16, 16)}
    rows = prepare(recipe).dataset
    assert len(rows) == 2 * len({row.key for _, row in rows.places})
    straight = train(recipe)
    found = json.loads((straight / "student.json").read_text())
    assert found["classes"] == ["background", "target", "other"] and found["regions"] == [16, 16]
    assert 0 <= found["score"]["target_iou"] <= 1
    logged = (straight / "metrics.jsonl").read_text().splitlines()
    line = next(line for line in map(json.loads, logged) if line["kind"] == "val")
    assert {"target_iou", "detection_rate_50", "teacher_miou"} <= line.keys()
    (state,) = sorted((straight / "checkpoints").glob("*/state.json"))[-1:]
    weights = json.loads(state.read_text())["class_weights"]
    assert {head: len(values) for head, values in weights.items()} == {"bg_fg": 2, "target": 2}
    assert all(value != 1.0 for value in weights["bg_fg"])
    student, picture = load_student(straight), np.zeros((64, 64, 3), np.uint8)
    mask = student.mask(picture, (10.0, 20.0, 50.0, 60.0))
    assert mask.max() <= 2 and not mask[:20].any() and not mask[:, 50:].any()
    for box, match in ((None, "looks at boxes"), ((0.0, 0.0, 90.0, 9.0), "not one of the picture")):
        with pytest.raises(UserError, match=match):
            student.mask(picture, box)
    other = replace(recipe, data=replace(recipe.data, regions=(8, 8)))
    with pytest.raises(UserError, match=r"target 'region' is not on the cells(.|\n)*16 16"):
        cache_teacher(other, ProcessContext())
    assert check_cache(cache.path, open_pictures(discs / "shards")).problems == ()


def test_an_epoch_has_every_box_and_a_box_that_moved_is_found(discs, monkeypatch):
    recipe = recipe_from(words(discs, "b3-b0-hierarchical-plain"))
    pictures = open_pictures(discs / "shards")
    assert recipe.num_train_rows(pictures) == 2 * pictures.num_rows("train")
    read, extra = [], PictureShard.extra
    with monkeypatch.context() as patched:
        patched.setattr(PictureShard, "extra", lambda *place: read.append(place) or extra(*place))
        assert prepare(recipe).epoch_steps == recipe.num_train_rows(pictures) // 2
    assert len(read) == len({(shard.path, i) for shard, i in read})  # each json once
    opened = pictures.open(pictures.shard_ids("train")[0])
    row = recipe.rows_of(opened)[0]
    seen = picture_of(opened.read(opened.index(row.key)), row, (64, 64))
    x0, y0, x1, y1 = seen.box
    moved = replace(seen, box=(x0 + 1, y0, x1, y1))
    assert pixels_crc32c(moved) != pixels_crc32c(seen) != pixels_crc32c(replace(seen, box=None))


def test_a_resumed_run_is_the_straight_one_with_its_class_weights(discs):
    from safetensors.torch import load_file

    plain = words(discs, "b3-b0-hierarchical-plain")
    straight = train(recipe_from([*plain, "--run.name", "straight", "--epochs", "3"]))
    # a run of two epochs whose rate is that of three: constant
    constant = ["--schedule.final", "1"]
    one = train(recipe_from([*plain, *constant, "--run.name", "one", "--epochs", "3"]))
    two = [*plain, *constant, "--run.name", "two"]
    train(recipe_from([*two, "--epochs", "1"]))
    more = ["--epochs", "1", "--run.resume", "--run.additional-epochs", "2"]
    again = train(recipe_from([*two, *more]))
    states = [load_file(run / "student.safetensors") for run in (one, again)]
    newest = [sorted((run / "checkpoints").iterdir())[-1] for run in (one, again)]
    weights = [json.loads((n / "state.json").read_text())["class_weights"] for n in newest]
    assert weights[0] == weights[1] and straight.is_dir()
    models = [load_file(n / "model.safetensors") for n in newest]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert states[0].keys() == states[1].keys()


@pytest.fixture(scope="module")
def commands(load_module):
    return load_module("recipes/real_pictures.py")


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_commands_on_real_people(shared, commands, tmp_path):
    people, groups = shared / "data" / "people", tmp_path / "groups"
    options = ("--train", 24, "--val", 8)
    commands.call("benchmarks/people_groups.py", people, "--out", groups, *options)
    train_split, val = (f"coco:{groups / s},{groups / s}.json" for s in ("train", "val"))
    options = ("--val", val, "--size", 96, 96)
    commands.call("tools/make_shards.py", train_split, *options, "--out", tmp_path / "shards")
    small = ["--student.cells", 12, 12, "--student.channels", 32, "--student.base", 8]
    small += ["--student.weights", "None", "--data.regions", 24, 24, "--run.device", "cpu"]
    small += ["--data.shards", tmp_path / "shards", "--run.out", tmp_path / "runs", "--epochs", 3]
    small += ["--run.cache", tmp_path / "cache", "--batch", 4, "--micro-batch", 4]
    small += ["--optimizer.lr", "1e-3"]
    teacher = ["b3-b0-hierarchical-teacher", "--student.unet", "None", "--freeze"]
    commands.call("train_student.py", *teacher, *small)
    run = tmp_path / "runs" / "b3-b0-hierarchical-teacher"
    told = ["b3-b0-hierarchical", *small, "--teachers.0.path", run]
    commands.call("tools/cache_teacher.py", *told, "--gate", "warn")
    commands.call("train_student.py", *told)
    commands.call("train_student.py", "b3-b0-hierarchical-plain", *small)
    for name in ("b3-b0-hierarchical", "b3-b0-hierarchical-plain", "b3-b0-hierarchical-teacher"):
        folder = tmp_path / "runs" / name
        commands.call("tools/evaluate.py", folder)
        found = json.loads((folder / "evaluation.json").read_text())
        score = json.loads((folder / "student.json").read_text())["score"]
        assert found["target_iou"] == pytest.approx(score["target_iou"], abs=1e-6)
        assert found["miou"] == pytest.approx(score["miou"], abs=1e-6)
        table = np.array(found["confusion"])
        assert table.shape == (3, 3) and np.sum(found["target_or_rest"]) == table.sum()
        assert np.sum(found["target_or_other"]) == table[1:].sum()
        f1 = 2 * table[1, 1] / (table[:, 1].sum() + table[1].sum())
        assert found["target_f1"] == pytest.approx(f1)
    commands.call("tools/export_onnx.py", folder)
    box = ["--box", 10, 20, 200, 300, "--out", tmp_path / "answers"]
    picture = groups / "val" / "val-0000.jpg"
    for student in (folder, folder / "export" / "student.onnx"):
        commands.call("tools/predict.py", student, picture, *box, "--mode", "mask")
        mask = np.array(Image.open(tmp_path / "answers" / "val-0000.box-10-20-200-300.png"))
        assert mask.shape == (384, 384) and mask.any() and not mask[300:].any()
    lines = commands.lines_of(tmp_path / "runs" / "b3-b0-hierarchical", "train")
    assert lines[-1]["loss"] < lines[0]["loss"]
