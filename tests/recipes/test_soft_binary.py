"""S2 from pictures to scores: a teacher of labelled people; its student sees no label anywhere."""

import csv
from pathlib import Path

import pytest

from stillroom.cache import open_cache
from stillroom.jsonfile import read_json
from stillroom.pictures.dataset import open_pictures

pytestmark = [pytest.mark.shared, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def commands(load_module):
    return load_module("recipes/real_pictures.py")


@pytest.fixture(scope="module")
def folder(shared, commands, tmp_path_factory) -> Path:
    """Everything that the recipes' commands leave behind, at 96 x 96: 200 + 40 labelled pictures
    of people, and all 500 without labels.
    """
    folder, people = tmp_path_factory.mktemp("s2"), shared / "data" / "people"
    source = commands.some_of(people, folder / "voc", 200, 40)
    size = ("--size", 96, 96)
    commands.call("tools/make_shards.py", f"voc:{source}", "--out", folder / "labelled", *size)
    held_out = ("--val-list", people / "ImageSets" / "Segmentation" / "val.txt")
    frames = ("--out", folder / "frames", *size, *held_out)
    commands.call("tools/make_shards.py", f"unlabelled:{people / 'JPEGImages'}", *frames)
    flags = ("--run.cache", folder / "cache", "--run.out", folder / "runs", "--run.device", "cpu")
    flags = (*flags, "--batch", 8, "--micro-batch", 8, "--optimizer.lr", 1e-3)
    labelled = ("--data.shards", folder / "labelled", "--student.width", 8, "--epochs", 6)
    commands.call("train_student.py", "soft-binary-teacher", *flags, *labelled)
    teacher = ("--teachers.0.path", folder / "runs" / "soft-binary-teacher")
    words = ("soft-binary", *flags, *teacher, "--data.shards", folder / "frames", "--epochs", 3)
    commands.call("tools/cache_teacher.py", *words)
    commands.call("train_student.py", *words)
    run = folder / "runs" / "soft-binary"
    commands.call("tools/evaluate.py", run, "--shards", folder / "labelled")
    return folder


def test_no_label_is_anywhere(folder):
    frames = open_pictures(folder / "frames")
    assert frames.classes == ()
    opened = [frames.open(shard) for split in ("train", "val") for shard in frames.shard_ids(split)]
    assert sum(map(len, opened)) == 500
    assert not any(shard.has_mask(i) for shard in opened for i in range(len(shard)))


def test_every_frame_is_kept_as_it_is_and_mirrored(folder):
    (path,) = (folder / "cache").iterdir()
    cache = open_cache(path)
    assert cache.is_complete
    assert {name: spec.shape for name, spec in cache.specs.items()} == {"mask": (1, 96, 96)}
    views = [row.view for shard in cache.shard_ids() for row in cache.reader(shard).rows]
    assert len(views) == 2 * 400 + 100
    assert sum(view.mirrored for view in views) == 400
    assert {(view.x0, view.y0, view.x1, view.y1) for view in views} == {(0, 0, 96, 96)}


def test_the_score_is_agreement_and_it_grows(folder, commands):
    run = folder / "runs" / "soft-binary"
    lines = commands.lines_of(run, "val")
    assert all("miou" not in line and 0 < line["agreement"] <= 1 for line in lines)
    assert lines[-1]["term_kl"] < lines[0]["term_kl"]
    best = max(line["agreement"] for line in lines)
    assert read_json(run / "student.json")["score"]["agreement"] == best


def test_history_is_a_csv_with_a_line_for_each_epoch(folder):
    rows = list(csv.DictReader((folder / "runs/soft-binary/history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["term_kl"]) > 0 and float(row["val_agreement"]) > 0 for row in rows)


def test_labels_that_the_student_never_saw_score_it_afterwards(folder):
    found = read_json(folder / "runs" / "soft-binary" / "evaluation.json")
    assert list(found["iou"]) == ["background", "human"]
    teacher = read_json(folder / "runs" / "soft-binary-teacher" / "student.json")["score"]["miou"]
    nothing = sum(found["confusion"][0]) / sum(map(sum, found["confusion"])) / 2
    assert nothing < found["miou"] < teacher + 0.1
