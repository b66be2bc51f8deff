"""A student is evaluated from the run's files alone, and only when they are what they say."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import file_sha256, read_json, write_json
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.pictures.make import make_shards
from stillroom.pictures.synthetic import CLASSES
from stillroom.students.definitions import UNetStudent
from stillroom.training.checkpoint import save_student
from stillroom.using.evaluation import confusion_of, draw_confusion, evaluate, open_data
from stillroom.using.student import Trained, load_student, milliseconds


@pytest.fixture(scope="module")
def pictures(tiny_world) -> PictureSet:
    return open_pictures(tiny_world / "shards")


@pytest.fixture
def run(tiny_world, pictures, tmp_path) -> Path:
    """What is needed of a finished run, with random weights."""
    config = UNetStudent(width=4, depth=2, classes=4)
    torch.manual_seed(3)
    about = {
        "network": config.architecture(),
        "classes": list(CLASSES),
        "geometry": {"height": 32, "width": 48, "fit": "stretch"},
        "pictures": {"path": str(tiny_world / "shards"), "digest": pictures.digest},
        "batch": 3,
    }
    save_student(tmp_path / "run", config.build(), about)
    return tmp_path / "run"


def at(array: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    return np.array(Image.fromarray(array).resize(size[::-1], resampling))


def by_numpy(trained: Trained, pictures: PictureSet, split: str) -> np.ndarray:
    """The confusion matrix, one picture and one class at a time."""
    table = np.zeros((4, 4), np.int64)
    for shard in pictures.shard_ids(split):
        opened = pictures.open(shard)
        for i in range(len(opened)):
            picture = opened.read(i)
            image = at(picture.image, trained.size, Image.Resampling.BILINEAR) / np.float32(255)
            image = torch.from_numpy(image).permute(2, 0, 1)
            with torch.no_grad():
                said = trained.network(image[None])[0].numpy().argmax(0)
            x0, y0, x1, y1 = picture.inside
            truth = np.full_like(picture.mask, 255)
            truth[y0:y1, x0:x1] = picture.mask[y0:y1, x0:x1]
            truth = at(truth, trained.size, Image.Resampling.NEAREST)
            for true in range(4):
                for found in range(4):
                    table[true, found] += np.sum((truth == true) & (said == found))
    return table


@pytest.mark.parametrize("split", ["val", "train"])
def test_confusion_and_miou_are_those_of_numpy(run, pictures, split):
    trained = load_student(run)
    found = evaluate(trained, open_data(trained, None), split)
    table = by_numpy(trained, pictures, split)
    assert found["confusion"] == table.tolist()
    hits = np.diag(table)
    with np.errstate(invalid="ignore"):
        iou = hits / (table.sum(0) + table.sum(1) - hits)
    assert found["miou"] == pytest.approx(np.nanmean(iou), abs=1e-12)
    assert list(found["iou"]) == list(CLASSES)
    assert found["iou"]["ground"] == pytest.approx(iou[0], abs=1e-12)
    assert found["pixel_accuracy"] == pytest.approx(hits.sum() / table.sum())


def test_a_student_is_evaluated_at_the_size_it_was_trained_at(run, pictures):
    about = read_json(run / "student.json")
    write_json(
        run / "student.json", about | {"geometry": {"height": 16, "width": 24, "fit": "stretch"}}
    )
    trained = load_student(run)
    found = evaluate(trained, open_data(trained, None))
    table = by_numpy(trained, pictures, "val")
    assert found["confusion"] == table.tolist()
    assert table.sum() <= 8 * 16 * 24


def test_the_files_say_the_same(run):
    trained = load_student(run)
    found = evaluate(trained, open_data(trained, None))
    assert read_json(run / "evaluation.json") == found
    rows = list(csv.reader((run / "confusion.csv").read_text().splitlines()))
    assert rows[0][1:] == list(CLASSES) == [row[0] for row in rows[1:]]
    assert [[int(n) for n in row[1:]] for row in rows[1:]] == found["confusion"]
    assert (run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    sizes = [tensor.numel() for tensor in load_file(run / "student.safetensors").values()]
    assert 0 < found["parameters"] <= sum(sizes) and found["ms"] > 0
    assert found["weights_sha256"] == file_sha256(run / "student.safetensors")


def test_batches_and_threads_change_nothing(run, pictures):
    trained = load_student(run)
    one = confusion_of(trained, pictures, "train", workers=1)
    trained.about["batch"] = 5
    assert torch.equal(confusion_of(trained, pictures, "train", workers=3), one)


def test_a_class_that_is_nowhere_is_null(run, tiny_world, tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join([*CLASSES, "nowhere"]))
    source = f"folders:{tiny_world / 'val' / 'images'},{tiny_world / 'val' / 'masks'}"
    out, names = tmp_path / "five", str(tmp_path / "classes.txt")
    make_shards(source, out=out, val_share=0.0, size=(32, 32), format="png", classes=names)
    config = UNetStudent(width=4, depth=2, classes=5)
    network = config.build()
    torch.nn.init.constant_(network.segmentation_head.bias, -1e4)
    with torch.no_grad():
        network.segmentation_head.bias[0] = 0.0  # ground everywhere
    about = read_json(run / "student.json")
    about |= {"network": config.architecture(), "classes": [*CLASSES, "nowhere"]}
    save_student(run, network, about)
    trained = load_student(run)
    found = evaluate(trained, open_data(trained, out), "train")
    assert found["iou"]["nowhere"] is None
    assert found["iou"]["disc"] == 0.0
    assert 0 < found["miou"] < 1


@pytest.mark.parametrize("missing", ["student.json", "student.safetensors"])
def test_a_run_that_is_not_finished_is_refused_with_what_to_do(run, missing):
    (run / missing).unlink()
    (run / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match=r"not a finished run(.|\n)*--run\.resume"):
        load_student(run)


def test_pictures_of_other_classes_are_refused_with_both_lists(run, tiny_world, tmp_path):
    source = f"folders:{tiny_world / 'val' / 'images'},{tiny_world / 'val' / 'masks'}"
    make_shards(source, out=tmp_path / "other", size=(32, 32), format="png", classes="4")
    with pytest.raises(UserError, match=r"other classes(.|\n)*ground, disc"):
        open_data(load_student(run), tmp_path / "other")


def test_a_student_that_was_trained_without_labels_is_scored_by_any_of_its_number(
    run, pictures, tiny_world, tmp_path
):
    wanted = evaluate(load_student(run), pictures)
    write_json(run / "student.json", read_json(run / "student.json") | {"classes": []})
    trained = load_student(run)
    found = evaluate(trained, open_data(trained, tiny_world / "shards"))
    assert found | {"ms": 0} == wanted | {"ms": 0}
    source = f"folders:{tiny_world / 'val' / 'images'},{tiny_world / 'val' / 'masks'}"
    make_shards(source, out=tmp_path / "five", size=(32, 32), format="png", classes="5")
    with pytest.raises(UserError, match=r"another number of classes(.|\n)*wanted: 4 classes"):
        evaluate(trained, open_data(trained, tmp_path / "five"))


def test_pictures_of_different_sizes_are_refused(run, tiny_world, tmp_path):
    source = f"folders:{tiny_world / 'val' / 'images'},{tiny_world / 'val' / 'masks'}"
    names = str(tiny_world / "classes.txt")
    make_shards(source, out=tmp_path / "sizes", format="png", classes=names)
    with pytest.raises(UserError, match="--size"):
        open_data(load_student(run), tmp_path / "sizes")


def test_a_split_without_a_label_is_refused(run, tiny_world, tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    make_shards(
        f"unlabelled:{tiny_world / 'val' / 'images'}",
        out=tmp_path / "bare",
        size=(32, 32),
        format="png",
        classes=str(tmp_path / "classes.txt"),
        val_share=0.0,
    )
    trained = load_student(run)
    with pytest.raises(UserError, match="no labelled picture"):
        evaluate(trained, open_data(trained, tmp_path / "bare"), "train")


def test_a_split_that_is_not_there_is_refused_with_those_that_are(run, pictures):
    with pytest.raises(UserError, match="train, val"):
        confusion_of(load_student(run), pictures, "test")


def test_weights_that_are_not_those_of_student_json_are_refused(run):
    path = run / "student.safetensors"
    weights = load_file(path)
    weights["segmentation_head.bias"] += 1
    save_file(weights, path)
    with pytest.raises(DamageError, match=r"not what student\.json names"):
        load_student(run)


def test_weights_of_another_network_are_refused_even_with_their_checksum(run):
    other = UNetStudent(width=5, depth=2, classes=4).build()
    save_file(other.state_dict(), run / "student.safetensors")
    about = read_json(run / "student.json")
    about["weights_sha256"] = file_sha256(run / "student.safetensors")
    write_json(run / "student.json", about)
    with pytest.raises(UserError):
        load_student(run)


def test_a_student_says_its_size_and_its_time(run):
    trained = load_student(run)
    assert trained.size == (32, 48)
    assert trained.num_parameters == sum(p.numel() for p in trained.network.parameters())
    assert not trained.network.training
    assert milliseconds(trained, repeats=2) > 0


def test_a_class_without_truth_is_drawn(tmp_path):
    table = torch.tensor([[3, 1], [0, 0]])
    draw_confusion(table, ["a", "b"], tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000
