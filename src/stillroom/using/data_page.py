"""What was found in a source as a table, as JSON and as one page that needs nothing else."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from stillroom.columns import in_columns
from stillroom.jsonfile import write_bytes, write_json
from stillroom.pictures.decode import BadPicture, open_picture, to_rgb
from stillroom.pictures.draw import VOID_COLOUR, blend, colour_mask
from stillroom.pictures.labels import Labels, colour_text, palette_of, shown
from stillroom.pictures.prepare import Geometry, prepare
from stillroom.types import IGNORE
from stillroom.using.data_report import DataReport, Seen
from stillroom.using.mask_reading import total
from stillroom.using.page import beside, data_url, legend, lines, page, table

_OVERLAYS, _PAIRS, _LINES, _ROWS = 24, 12, 10, 60
_TILE = Geometry(height=176, width=176, fit="letterbox")


def write_report(report: DataReport, out: Path) -> None:
    """Write check.json and check.html into a folder, made where absent."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "check.json", report.as_json())
    write_bytes(out / "check.html", _html(report).encode())


def table_text(report: DataReport) -> str:
    """Return what was found, for people."""
    lines = [*_summary(report), "", *in_columns(_class_rows(report), 1)]
    for title, texts in _faults(report):
        lines += ["", title, *(f"  {text}" for text in texts)]
    return "\n".join(lines)


def _summary(report: DataReport) -> list[str]:
    splits = [f"{sum(s.split == name for s in report.seen)} {name}" for name in report.splits]
    sizes = sorted({one.size for one in report.seen if one.size})
    lines = [f"{report.source}: {', '.join(splits)}"]
    if sizes:
        height, width = map(_span, zip(*sizes, strict=True))
        number = "one size" if len(sizes) == 1 else f"{len(sizes)} sizes (training needs one)"
        lines.append(f"pictures: {number}, height {height}, width {width} pixels")
    masks = [one.mask for one in report.seen if one.mask]
    if masks:
        values = report.values(masks)
        text = shown(map(colour_text, values) if report.is_by_colour else values)
        lines.append(f"masks: {len(masks)}, {report.reading.kind}: {text}")
        lines.append(f"stillroom shards: {_flags(report)}")
    lines += [f"note: {note}" for note in (*report.reading.notes, *report.more)]
    return lines


def _span(sides: Sequence[int]) -> str:
    low, high = min(sides), max(sides)
    return str(low) if low == high else f"{low} to {high}"


def _flags(report: DataReport) -> str:
    if report.is_unread:
        return "no flag reads these masks"
    return " ".join(report.reading.flags) or "reads these masks as they are"


def _class_rows(report: DataReport) -> list[list[str]]:
    rows = [["class", "share", "pictures", "weight"]]
    for row in report.class_table():
        weight, pictures = row.get("weight"), row.get("pictures", "")
        known = "" if weight is None else f"{weight:.3g}"
        rows.append([row["name"], f"{row['share']:.2%}", str(pictures), known])
    return rows if len(rows) > 1 else []


def _faults(report: DataReport) -> list[tuple[str, list[str]]]:
    """Return what is wrong, kind by kind, each as a heading and lines."""
    equal = [" = ".join(one.name for one in group) for group in report.leaks]
    within = [
        " = ".join(one.name for one in group) for group in report.exact if group not in report.leaks
    ]
    near = [f"{one.name} ~ {other.name} ({bits} of 64 bits)" for one, other, bits in report.near]
    kinds = (
        ("cannot be packed", list(report.problems)),
        ("the same picture in two splits", equal),
        ("nearly the same picture in two splits", near),
        ("the same picture twice in one split", within),
    )
    return [(f"{title}: {len(lines)}", _cut(lines)) for title, lines in kinds if lines]


def _cut(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - _LINES
    return [*lines[:_LINES], *([f"and {rest} more, see check.json"] if rest > 0 else [])]


def _html(report: DataReport) -> str:
    pairs = [(a, b) for a, b, _ in report.near] + [(g[0], g[-1]) for g in report.leaks]
    tiles = (_figure(_plain(one), one.name) for pair in pairs[:_PAIRS] for one in pair)
    sections = [
        ("Found", lines(_summary(report))),
        ("Classes", _class_html(report)),
        ("Values in the masks", _value_html(report)),
        *((title, lines(texts)) for title, texts in _faults(report)),
        ("In two splits", beside(tiles)),
        ("Pictures and masks", beside(_overlays(report))),
    ]
    return page("Data check", report.source, sections)


def _class_html(report: DataReport) -> str:
    head, *rows = _class_rows(report) or [[]]
    if not rows:
        return ""
    colours = [*palette_of(len(rows) - 1), VOID_COLOUR]
    return legend([(row[0], c) for row, c in zip(rows, colours, strict=True)]) + table(head, rows)


def _value_html(report: DataReport) -> str:
    masks = [one.mask for one in report.seen if one.mask]
    values, labels = report.values(masks), report.reading.labels
    if not values or len(values) > _ROWS:
        return ""
    known, every = ({} if labels is None else labels.known()), sum(values.values())
    on = total(dict.fromkeys(report.values([mask]), 1) for mask in masks)
    text = colour_text if report.is_by_colour else str
    rows = []
    for value, pixels in values.items():
        label = known.get(value)
        name = {None: "no class", IGNORE: "void"}.get(label) or labels.names[label]  # type: ignore
        rows.append([text(value), f"{pixels / every:.2%}", str(on[value]), name])
    rgb = {colour_text(v): (v >> 16, v >> 8 & 255, v & 255) for v in values}
    marks = legend(list(rgb.items())) if report.is_by_colour else ""
    return marks + table(["value", "share", "masks", "read as"], rows)


def _overlays(report: DataReport) -> Iterable[str]:
    """Yield pictures at even distances, each beside itself under its mask and the mask alone."""
    labels = report.reading.labels or Labels(names=("picture",))
    whole = [one for one in report.seen if not one.problem]
    for i in range(min(_OVERLAYS, len(whole))):
        one = whole[i * len(whole) // min(_OVERLAYS, len(whole))]
        masked = one.mask is not None and report.reading.labels is not None
        item = one.item if masked else replace(one.item, mask=None, instances=None)
        try:
            packed = prepare(one.key, item, labels, _TILE, "jpg")
        except BadPicture as error:
            yield f"<figure><figcaption>{escape(str(error))}</figcaption></figure>"
            continue
        image = np.array(Image.open(io.BytesIO(packed.picture)))
        tiles = [image]
        if packed.mask is not None:
            mask = np.array(Image.open(io.BytesIO(packed.mask)))
            palette = palette_of(len(labels.names))
            tiles += [blend(image, mask, palette), colour_mask(mask, palette)]
        x0, y0, x1, y1 = packed.inside
        yield _figure(np.concatenate([tile[y0:y1, x0:x1] for tile in tiles], 1), one.name)


def _plain(one: Seen) -> np.ndarray:
    return np.array(_TILE.place(to_rgb(open_picture(one.item.picture)[1], one.item.picture)))


def _figure(pixels: np.ndarray, caption: str) -> str:
    text, url = escape(caption), data_url(Image.fromarray(pixels), "JPEG", quality=95)
    return f'<figure><img alt="{text}" src="{url}"><figcaption>{text}</figcaption></figure>'
