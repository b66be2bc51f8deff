"""report.html of a run: its evaluation, pictures, curves, cache and settings in one page."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.cache.folder import Cache
from stillroom.columns import figure
from stillroom.jsonfile import read_json, write_bytes
from stillroom.pictures.dataset import PictureSet
from stillroom.using.browse import viewer
from stillroom.using.cached_masks import CachedMasks, cache_read
from stillroom.using.charts import Series, chart
from stillroom.using.comparison_table import short
from stillroom.using.curves import run_charts
from stillroom.using.examples import draw_examples
from stillroom.using.page import beside, cards, details, lines, page, paragraph, table
from stillroom.using.student import Trained
from stillroom.using.student_rows import class_names


def write_report(
    trained: Trained, pictures: PictureSet, found: dict[str, Any], teacher: CachedMasks | None
) -> Path:
    """Write `report.html` and `examples.png` beside an evaluation; return the page's path."""
    run, classes, split = trained.run, class_names(trained, pictures), found["split"]
    scores = [*found.get("picture_miou", {}).items()]
    if scores:
        draw_examples(trained, pictures, split, scores, run / "examples.png", teacher)
    recipe = read_json(run / "recipe.json")["recipe"] if (run / "recipe.json").is_file() else {}
    settings = table(["setting", "value"], _flat(recipe), num_left=2)
    cache = None if teacher is None else teacher.cache
    sections = [
        ("Scores", cards(_headline(found)) + _definitions(found)),
        ("Classes", _class_table(found)),
        ("Pictures", viewer({"student": trained}, pictures, split, scores, teacher)),
        ("Curves", run_charts(run, classes)),
        ("Confusion", _confusion(found, classes)),
        ("Calibration", _calibration(found)),
        ("Own sizes", _own_size(found)),
        ("Teachers", _teachers(found) + _cache(run, cache)),
        ("Settings", details("every setting of the recipe", settings) if recipe else ""),
    ]
    height, width = trained.size
    about = (
        f"A student of the recipe {trained.about.get('recipe', recipe.get('name', 'unknown'))},"
        f" evaluated on {len(scores)} pictures of the split {split!r} at"
        f" {height} x {width} pixels."
    )
    text = page(run.resolve().name, about, sections)
    write_bytes(run / "report.html", text.encode())
    return run / "report.html"


def _headline(found: dict[str, Any]) -> list[tuple[str, str]]:
    names = {
        "target_iou": "target IoU",
        "miou": "mIoU",
        "boundary_miou": "boundary IoU",
        "pixel_accuracy": "pixel accuracy",
        "calibration_error": "calibration error",
        "agreement": "agreement with teacher",
        "teacher_miou": "teacher mIoU",
    }
    known = [(label, f"{found[name]:.4f}") for name, label in names.items() if name in found]
    return [
        *known,
        ("parameters", f"{found['parameters'] / 1e6:.3g} M"),
        ("operations a picture", f"{found['flops'] / 1e9:.3g} GFLOPs"),
        ("weights", f"{found['weights_bytes'] / 1e6:.3g} MB"),
        ("time a picture", f"{found['ms']:.1f} ms"),
    ]


def _definitions(found: dict[str, Any]) -> str:
    texts = [
        "mIoU is that of the whole split: the mean over the classes in truth or prediction; void"
        " counts nowhere.",
        "Boundary IoU is that of the rims of the masks, 2 % of the picture's diagonal wide.",
        "Calibration error is the mean difference of probability and accuracy, in 15 bins.",
        "Time is the median of one picture on one CPU, network alone, fp32; a multiplication and an"
        " addition are two operations.",
    ]
    if values := [*found.get("picture_miou", {}).values()]:
        names = ("least", "a quarter below", "median", "a quarter above", "most")
        marks = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
        each = ", ".join(f"{name} {mark:.3f}" for name, mark in zip(names, marks, strict=True))
        texts.append(f"mIoU of single pictures: {each}.")
    return lines(texts)


def _class_table(found: dict[str, Any]) -> str:
    columns = {
        "iou": "IoU",
        "precision": "precision",
        "recall": "recall",
        "boundary_iou": "boundary IoU",
    }
    if "iou" not in found:
        return paragraph("the pictures have no labels")
    total = sum(map(sum, found["confusion"])) or 1
    rows = [
        [
            name,
            f"{sum(pixels) / total:.2%}",
            *(figure(found[column][name]) for column in columns),
        ]
        for name, pixels in zip(found["iou"], found["confusion"], strict=True)
    ]
    return table(["class", "share of pixels", *columns.values()], rows)


def _confusion(found: dict[str, Any], classes: Sequence[str]) -> str:
    if "confusion" not in found:
        return ""
    rows, mistakes = [], []
    for truth, pixels in zip(classes, found["confusion"], strict=True):
        shares = [count / (sum(pixels) or 1) for count in pixels]
        rows.append((truth, shares))
        pairs = zip(classes, shares, strict=True)
        mistakes += [(share, truth, name) for name, share in pairs if name != truth and share]
    words = [
        f"{share:.1%} of {truth} is taken for {name}"
        for share, truth, name in sorted(mistakes, reverse=True)[:10]
    ]
    cells = [[truth, *(figure(share, ".2f") for share in shares)] for truth, shares in rows]
    body = table(["truth \\ prediction", *classes], cells)
    each = (share for _, shares in rows for share in shares)
    body = re.sub("<td>", lambda _: f'<td style="--share:{next(each):.2f}">', body)
    note = paragraph("shares of the true class's pixels")
    return note + body.replace('class=""', 'class="confusion"') + lines(words)


def _calibration(found: dict[str, Any]) -> str:
    bins = [row for row in found.get("calibration", ()) if row[0]]
    curve = [(total / pixels, right / pixels) for pixels, total, right in bins]
    ends = [(curve[0][0],) * 2, (curve[-1][0],) * 2] if curve else []
    drawn = chart(
        "accuracy over probability",
        [Series(name="student", points=curve), Series(name="ideal", points=ends, dash=1)],
        x="mean probability of the predicted class",
        note="below the ideal line the student is surer than it is right",
    )
    return beside([drawn])


def _own_size(found: dict[str, Any]) -> str:
    own = found.get("own_size")
    if own is None:
        return ""
    figures = [("mIoU", own["miou"], found.get("miou"))]
    figures += [(name, own["iou"][name], found["iou"][name]) for name in own["iou"]]
    rows = [[name, *map(figure, values)] for name, *values in figures]
    about = (
        f"{own['num_pictures']} of {own['num_wanted']} pictures of the split, in {own['source']}"
    )
    return paragraph(about) + table(["", "at their own sizes", "at the network's"], rows)


def _teachers(found: dict[str, Any]) -> str:
    if "teachers" not in found:
        return ""
    named = [(f"teacher, {one['target']}", one) for one in found["teachers"]]
    rows = [
        [name, figure(one.get("miou")), figure(one["parameters"], ","), figure(one["ms"], ".2f")]
        for name, one in [*named, ("student", found)]
    ]
    return table(["on the same pictures", "mIoU", "parameters", "ms a picture"], rows)


def _cache(run: Path, cache: Cache | None) -> str:
    read = cache_read(run)
    if read is None:
        return ""
    facts = [f"Cache {read['name']}, fingerprint {read['fingerprint']}."]
    if cache is None:
        return lines([*facts, "It was not at hand when this page was written, or holds no masks."])
    published = [s for s in cache.shard_ids() if cache.is_published(s)]
    size = sum(map(cache.shard_bytes, published))
    facts.append(
        f"{len(cache):,} rows in {len(published)} of {len(cache.shard_ids())} shards,"
        f" {size / 1e6:.1f} MB, {cache.num_views('train')} views of each training picture."
    )
    rows = [
        [name, spec.kind, " x ".join(map(str, spec.shape)), f"{spec.stride}", spec.codec]
        for name, spec in cache.specs.items()
    ]
    head = ["target", "kind", "shape", "stride, pixels", "codec"]
    teachers = [
        f"{name}: {short(entry['teacher'])}" for name, entry in cache.identity["targets"].items()
    ]
    return lines(facts) + table(head, rows) + details("the teachers", lines(teachers))


def _flat(value: Any, name: str = "") -> list[list[str]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for member, item in parts:
        dotted = f"{name}.{member}" if name else f"{member}"
        nested = isinstance(item, dict) or (
            isinstance(item, list) and any(isinstance(part, dict) for part in item)
        )
        found += _flat(item, dotted) if nested else [[dotted, short(item)]]
    return found
