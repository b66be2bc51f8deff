"""A report says what training found, shows every figure, fetches nothing, and its slider works."""

import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.errors import UserError
from stillroom.extraction.evaluate_teachers import evaluate_teachers
from stillroom.jsonfile import read_json, write_json
from stillroom.metrics import confusion, iou
from stillroom.pictures.dataset import open_pictures
from stillroom.pictures.labels import Labels
from stillroom.pictures.make import make_shards
from stillroom.students.definitions import BinaryUNetStudent, UNetStudent
from stillroom.training import loop
from stillroom.training.checkpoint import save_student
from stillroom.training.log import read_metrics
from stillroom.using.cached_masks import find_masks
from stillroom.using.comparison import compare
from stillroom.using.comparison_page import write_comparison_page
from stillroom.using.comparison_table import write_comparison
from stillroom.using.evaluation import confusion_of, evaluate, open_data
from stillroom.using.examples import choose
from stillroom.using.measures import Measures
from stillroom.using.own_size import evaluate_at_own_size
from stillroom.using.report import write_report
from stillroom.using.student import load_student

EVIL = ("<script>throw 1</script>", '"><img src="http://a.test/x">', "a&b", "<b>d")


@pytest.fixture(scope="module")
def trained_run(make_tiny, tiny_world, tmp_path_factory) -> Path:
    """A run of one epoch that read the cache."""
    recipe = make_tiny.tiny_recipe(tiny_world, tmp_path_factory.mktemp("trained"))
    return loop.train(replace(recipe, epochs=1))


@pytest.fixture
def run(trained_run, tmp_path) -> Path:
    return shutil.copytree(trained_run, tmp_path / "run")


@pytest.fixture
def evil_run(make_tiny, tmp_path) -> Path:
    """A run whose classes, terms and settings are HTML, with nothing of a teacher."""
    make_tiny.make_pictures(tmp_path / "world", train=8, val=8, classes=EVIL)
    config = UNetStudent(width=4, depth=2, classes=4)
    torch.manual_seed(3)
    about = {
        "network": config.architecture(),
        "classes": list(EVIL),
        "geometry": {"height": 32, "width": 48, "fit": "stretch"},
        "pictures": {"path": str(tmp_path / "world" / "shards")},
        "batch": 3,
    }
    save_student(tmp_path / "evil", config.build(), about)
    write_json(tmp_path / "evil" / "recipe.json", {"recipe": {"name": EVIL[1], EVIL[0]: EVIL[1]}})
    line = {"kind": "train", "step": 1, "epoch": 0, "loss": 1.0, f"term_{EVIL[0]}": 2.0}
    lines = [line, {**line, "step": 2}]
    (tmp_path / "evil" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "evil"


def reported(run: Path, cache: Path) -> tuple[dict, list[tuple[str, float]], str]:
    trained = load_student(run)
    pictures = open_data(trained, None)
    masks, _ = find_masks(trained, pictures, "val", cache)
    found = evaluate(trained, pictures, "val", "cpu", masks)
    path = write_report(trained, pictures, found, masks)
    return found, [*found.get("picture_miou", {}).items()], path.read_text("utf-8")


def test_agreement_and_teacher_are_what_training_found_without_a_teacher(run, tiny_world):
    found, _, _ = reported(run, tiny_world / "cache")
    score = read_json(run / "student.json")["score"]
    assert found["miou"] == pytest.approx(score["miou"], abs=1e-9)
    assert found["teacher_miou"] == pytest.approx(score["teacher_miou"], abs=1e-9)
    assert found["agreement"] == pytest.approx(score["agreement"], abs=1e-9)


def test_each_picture_has_its_own_miou_and_the_worst_are_shown_first(run, tiny_world):
    _, scores, text = reported(run, tiny_world / "cache")
    trained, pictures = load_student(run), open_pictures(tiny_world / "shards")
    shard = pictures.open(pictures.shard_ids("val")[0])
    key, score = scores[2]
    picture = shard.read(shard.index(key))
    with torch.no_grad():
        image = torch.from_numpy(picture.image).permute(2, 0, 1)[None] / 255
        said = trained.network(image).argmax(1)
    table = confusion(said, torch.from_numpy(picture.mask)[None].long(), 4)
    assert score == pytest.approx(float(iou(table).nanmean()), abs=1e-9)
    assert len(scores) == 8
    places = [text.index(f'title="{key}, mIoU') for key, _ in sorted(scores, key=by_score)]
    assert places == sorted(places)
    with Image.open(run / "examples.png") as image:
        assert image.width > 5 * 96  # picture, truth, teacher, student, difference


def by_score(pair: tuple[str, float]) -> float:
    return pair[1]


def test_pictures_to_look_at_are_the_worst_and_a_spread_without_repetition():
    scores = [(f"{i}", (i * 37 % 100) / 100) for i in range(100)]
    chosen = choose(scores, 8, 64)
    assert [score for _, score in chosen[:8]] == [i / 100 for i in range(8)]
    assert len({key for key, _ in chosen}) == 64
    assert choose(scores[:5], 8, 64) == sorted(scores[:5], key=by_score)


def test_every_figure_of_the_run_has_a_chart_and_words(run, tiny_world):
    _, _, text = reported(run, tiny_world / "cache")
    lines = read_metrics(run)
    assert any(name.startswith("temperature_") for name in lines[0])
    for title in ("training loss and terms", "validation loss and terms", "scores", "temperature"):
        assert f"<h3>{title}</h3>" in text
    for name in ("learning rate", "speed, pictures a second", "agreement", "IoU of each class"):
        assert name in text
    for name in lines[0]:
        if name.startswith("term_"):
            label = name.removeprefix("term_").replace("_", " ")
            assert f"<li>{label}: from " in text or f"<li>{label}: " in text
    assert text.count("<svg viewBox") > 6 and "fingerprint" in text and "learning rate: " in text


@pytest.mark.parametrize("why", ["read no cache", "is not in", "other pictures"])
def test_where_the_teacher_is_not_at_hand_it_says_why(run, tiny_world, tmp_path, why, make_tiny):
    trained, cache = load_student(run), tiny_world / "cache"
    pictures = open_pictures(tiny_world / "shards")
    if why == "read no cache":
        (run / "receipt.json").unlink()
    elif why == "is not in":
        cache = tmp_path / "nowhere"
    else:
        make_tiny.make_pictures(tmp_path / "other", train=8, val=9)
        pictures = open_pictures(tmp_path / "other" / "shards")
    masks, reason = find_masks(trained, pictures, "val", cache)
    assert masks is None and why in reason


def test_at_own_size_a_padded_picture_is_judged_as_without_its_padding(run, tiny_world):
    trained, pictures = load_student(run), open_pictures(tiny_world / "shards")
    labels = Labels(names=pictures.classes)
    source = f"folders:{tiny_world / 'val' / 'images'},{tiny_world / 'val' / 'masks'}"
    own = evaluate_at_own_size(trained, pictures, source, labels, "val", "cpu")
    table = confusion_of(trained, pictures, "val")
    known = [v for v in iou(table).tolist() if v == v]  # 24 x 48 px within 32 x 48: nothing resized
    assert [v for v in own["iou"].values() if v is not None] == pytest.approx(known, abs=1e-9)
    assert (own["num_pictures"], own["num_wanted"]) == (8, 8)
    elsewhere = f"unlabelled:{tiny_world / 'train' / 'images'}"
    with pytest.raises(UserError, match="no labelled picture of split 'val'"):
        evaluate_at_own_size(trained, pictures, elsewhere, labels, "val", "cpu")


def test_teachers_are_scored_timed_and_counted_on_the_same_pictures(tiny_recipe, tiny_world, run):
    pictures = open_pictures(tiny_world / "shards")
    first, second = evaluate_teachers(tiny_recipe, pictures, "val", (32, 48), "cpu")
    assert (first["target"], second["target"]) == ("shapes", "inner")
    taught = read_json(run / "student.json")["score"]["teacher_miou"]
    assert first["miou"] == pytest.approx(taught, abs=0.01)  # the cache rounds
    assert second["miou"] is None and first["ms"] == second["ms"] > 0
    config = UNetStudent(width=4, depth=2, classes=4)
    assert first["parameters"] == sum(p.numel() for p in config.build().parameters())


def test_the_comparison_page_has_pictures_of_every_recipe_or_says_why_not(
    run, make_tiny, tiny_world, tmp_path
):
    recipe = make_tiny.tiny_recipe(tiny_world, tmp_path / "runs")
    plain = replace(recipe, name="plain", terms=recipe.terms[:1], teachers=(), codec={}, epochs=1)
    assert plain.terms[0].needs.target is None
    other = loop.train(plain)
    cache = tiny_world / "cache"
    out = tmp_path / "out"
    rows = compare([run, other])
    write_comparison(rows, out)
    text = write_comparison_page(rows, out, None, cache).read_text("utf-8")
    assert "There are no pictures here" in text and "was not evaluated on them" in text
    reported(run, cache)
    text = write_comparison_page(compare([run, other]), out, None, cache).read_text("utf-8")
    for name in ("without: plain", "with: tiny", "difference: without: plain", "teacher"):
        assert f"<option>{name}</option>" in text or f"<option selected>{name}</option>" in text
    assert "validation: mIoU" in text and "Settings that differ" in text and "GFLOPs" in text


def test_in_a_browser_nothing_complains_nothing_is_fetched_and_the_slider_moves_the_edge(
    evil_run, load_module, tmp_path
):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    reported(evil_run, tmp_path)
    browser = load_module("using/browser.py").Browser(chromium, tmp_path / "profile")
    try:
        metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.call("Emulation.setDeviceMetricsOverride", **metrics)
        browser.open(evil_run / "report.html")
        assert browser.value("document.documentElement.scrollWidth") == 390
        assert browser.value("document.querySelectorAll('.strip button').length") == 8
        clip = "document.getElementById('left-layer').style.clipPath"
        assert browser.value(clip) == "inset(0px 50% 0px 0px)"
        browser.value("document.getElementById('split').focus()")
        browser.press("ArrowRight", 39)
        assert browser.value(clip) == "inset(0px 49% 0px 0px)"
        shown = "document.getElementById('shown').textContent.slice(0, 6)"
        assert browser.value(shown) == "1 of 8"
        browser.value("document.getElementById('after').click()")
        assert browser.value(shown) == "2 of 8"
        place = browser.value(
            "(() => { const b = document.getElementById('stage'); b.scrollIntoView();"
            " const r = b.getBoundingClientRect(); return [r.left + r.width / 4, r.top + 9]; })()"
        )
        browser.click(*place)
        assert browser.value("document.getElementById('split').value") == "25"
        names = "[...document.querySelectorAll('tbody td')].map((cell) => cell.textContent)"
        assert {*EVIL} <= {*browser.value(names)}
        assert browser.complaints == []
        assert {url.partition(":")[0] for url in browser.requests} == {"file", "data"}
    finally:
        browser.close()


def test_masks_of_the_page_are_those_of_the_student(evil_run, tmp_path):
    import base64
    import io

    _, scores, text = reported(evil_run, tmp_path)
    start = text.index('id="layers">') + len('id="layers">')
    layers = json.loads(text[start : text.index("</script>", start)])
    trained, pictures = load_student(evil_run), open_data(load_student(evil_run), None)
    key, _ = min(scores, key=by_score)
    shard = pictures.open(pictures.shard_ids("val")[0])
    picture = shard.read(shard.index(key))
    with torch.no_grad():
        said = trained.network(torch.from_numpy(picture.image).permute(2, 0, 1)[None] / 255)
    data = base64.b64decode(layers[0]["student"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.array(image), said[0].argmax(0).numpy())


def test_a_binary_student_without_labels_has_a_report_of_what_there_is(tiny_world, tmp_path):
    source, out = f"unlabelled:{tiny_world / 'val' / 'images'}", tmp_path / "unlabelled"
    make_shards(source, out=out, val_share=0.5, size=(32, 48), format="png")
    config = BinaryUNetStudent(width=4)
    about = {
        "network": config.architecture(),
        "classes": [],
        "geometry": {"height": 32, "width": 48, "fit": "stretch"},
        "pictures": {"path": str(out)},
        "batch": 3,
    }
    save_student(tmp_path / "run", config.build(), about)
    found, scores, text = reported(tmp_path / "run", tmp_path)
    assert load_student(tmp_path / "run").num_classes == 2
    assert scores == [] and "miou" not in found and found["flops"] > 0
    assert "the pictures have no labels" in text and 'id="layers"' not in text
    assert found["ms"] > 0 and not (tmp_path / "run" / "confusion.csv").exists()


def test_a_student_without_labels_is_compared_with_its_teacher(run, tiny_world):
    trained, pictures = load_student(run), open_pictures(tiny_world / "shards")
    masks, _ = find_masks(trained, pictures, "val", tiny_world / "cache")
    shard, measures = pictures.open(pictures.shard_ids("val")[0]), Measures(4, masks)
    picture = replace(shard.read(0), mask=None)
    with torch.no_grad():
        logits = trained.network(torch.from_numpy(picture.image).permute(2, 0, 1)[None] / 255)
    measures.add([picture.key], [picture], logits, torch.full((1, 32, 48), 255))
    found = measures.figures([])
    x0, y0, x1, y1 = picture.inside
    agrees = (logits.argmax(1)[0] == masks.mask(picture.key))[y0:y1, x0:x1]
    assert found["agreement"] == pytest.approx(float(agrees.float().mean()))
    assert found.keys() == {"agreement", "picture_miou"} and measures.scores[0][1] < 1


def test_what_follows_teacher_belongs_to_its_recipe(run, tiny_world, capsys):
    tool = import_module("stillroom.commands.evaluate")
    with pytest.raises(UserError, match="names no recipe"):
        tool.parse([f"{run}", "--teacher"])
    own = [f"{run}", "--cache", f"{tiny_world / 'cache'}"]
    recipe = ["tiny", "--teachers.0.path", f"{tiny_world / 'teacher'}", "--run.recorded-teachers"]
    tool.parse([*own, "--teacher", *recipe])
    said = capsys.readouterr().out
    assert "teacher of shapes: mIoU" in said and "agreement with the teacher (mIoU" in said
    assert read_json(run / "evaluation.json")["teachers"][0]["target"] == "shapes"
    assert "on the same pictures" in (run / "report.html").read_text("utf-8")
