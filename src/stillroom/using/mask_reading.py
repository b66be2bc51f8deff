"""What the files of masks hold, and the flag of `stillroom shards` that reads them rightly."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from stillroom.pictures.decode import decode_colours, decode_labels
from stillroom.pictures.labels import Labels, colour_text, palette_of, shown
from stillroom.types import IGNORE

_GREY = 0x010101  # a grey level times this is its colour
_VOID_COLOUR = 224 << 16 | 224 << 8 | 192  # PASCAL VOC's
_MOST = 255  # values or colours that may be classes
_SOFT = 32  # grey levels of one mask that make its edges blurred

Kind = Literal["grey levels", "palette indices", "colours", "JPEG", "instances"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSeen:
    """One mask: pixels of each value (of each colour where `kind` is colours) that occurs, and the
    colours that a palette gives to them.
    """

    kind: Kind
    size: tuple[int, int]  # height, width in pixels
    pixels: Mapping[int, int]
    palette: Mapping[int, int] = field(default_factory=dict)

    def by_colour(self) -> dict[int, int]:
        """Return the pixels of each colour."""
        if self.kind == "colours":
            return dict(self.pixels)
        found: Counter[int] = Counter()
        for value, pixels in self.pixels.items():
            found[self.palette.get(value, value * _GREY)] += pixels
        return dict(found)

    def is_blurred(self, num_classes: int) -> bool:
        """Tell whether there are many grey levels, and most pixels have two of them."""
        two = sum(sorted(self.pixels.values())[-2:])
        many = self.kind == "grey levels" and len(self.pixels) > max(_SOFT, num_classes)
        return many and 2 * two > sum(self.pixels.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How masks are to be read: what they are, flags for stillroom shards, the labels that these
    give (None where no flag reads them), and what a person should know.
    """

    kind: str
    flags: tuple[str, ...] = ()
    labels: Labels | None = None
    notes: tuple[str, ...] = ()


def see_mask(image: Image.Image, path: Path) -> MaskSeen:
    """Return what a mask's file holds; raises BadPicture for what cannot be a mask."""
    size = (image.height, image.width)
    if image.format == "JPEG":
        return MaskSeen(kind="JPEG", size=size, pixels={})
    is_rgb = image.mode in ("RGB", "RGBA")
    codes = decode_colours(image, path) if is_rgb else decode_labels(image, path)
    kind: Kind = "palette indices" if image.mode in ("P", "PA") else "grey levels"
    values, counts = np.unique(codes, return_counts=True)
    if is_rgb and (values % _GREY == 0).all():
        values = values // _GREY
    elif is_rgb:
        kind = "colours"
    pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    palette = _colours_of(image, pixels) if image.mode == "P" else {}
    return MaskSeen(kind=kind, size=size, pixels=pixels, palette=palette)


def recognise(masks: Sequence[MaskSeen], names: tuple[str, ...]) -> Reading:
    """Return how the masks of one source are to be read; `names` are its classes, where known."""
    kinds = sorted({mask.kind for mask in masks})
    kind = " and ".join(kinds) or "none"
    if "JPEG" in kinds:
        number = sum(mask.kind == "JPEG" for mask in masks)
        note = f"{number} masks are JPEG, whose values are not what was drawn: no flag reads them"
        return Reading(kind=kind, notes=(f"{note}; save them as PNG from where they came from",))
    blurred = [mask for mask in masks if mask.is_blurred(len(names))]
    if 2 * len(blurred) > len(masks):
        note = f"{len(blurred)} masks with blurred edges: no flag reads them, threshold them first"
        return Reading(kind=kind, notes=(note,))
    masks = [mask for mask in masks if mask not in blurred] if blurred else masks
    if kinds == ["instances"] or not masks:
        return Reading(kind=kind, labels=Labels(names=names) if masks else None)
    colours = total(mask.by_colour() for mask in masks)
    if "colours" in kinds:
        return _by_colour(kind, colours, names)
    values = total(mask.pixels for mask in masks)
    strange = _index_of_two_colours(masks)
    if strange and len(colours) <= len(values) + 1:
        found = _by_colour(kind, colours, names)
        note = f"index {strange} has not the same colour in every mask: the colours are meant"
        return replace(found, notes=(note, *found.notes))
    return _by_value(kind, values, names)


def total(pixels: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Return the pixels of each value over all masks, in order of the values."""
    found: Counter[int] = Counter()
    for one in pixels:
        found.update(one)
    return dict(sorted(found.items()))


def _by_value(kind: str, values: dict[int, int], names: tuple[str, ...]) -> Reading:
    known = sorted(set(values) - {IGNORE})
    if set(values) == {0, IGNORE}:
        note = "0/255 masks of a binary task: without the flag 255 would be void"
        return _mapped(kind, {0: 0, IGNORE: 1}, names, note)
    if known and max(known) < len(names):
        return Reading(kind=kind, labels=Labels(names=names))
    if known == list(range(len(known))) and not names:
        return Reading(kind=kind, labels=Labels(names=_named((), len(known))))
    if not known or max(known) > 65535 or len(known) > _MOST:
        return Reading(kind=kind, notes=(f"no classes can be told from values {shown(known)}",))
    if 0 in known and max(known) < min(IGNORE, 2 * len(known)):  # some classes do not occur
        flags = ("--classes", str(max(known) + 1))
        note = f"values up to {max(known)}, of which some do not occur"
        labels = Labels(names=_named((), max(known) + 1))
        return Reading(kind=kind, flags=flags, labels=labels, notes=(note,))
    gaps = np.diff([*known, IGNORE])
    is_last_class = IGNORE in values and len(known) > 1 and gaps.max() - gaps.min() <= 1
    every = [*known, IGNORE] if is_last_class else known
    note = "classes are numbered in the order of the values; that is a guess"
    return _mapped(kind, {value: i for i, value in enumerate(every)}, names, note)


def _by_colour(kind: str, colours: dict[int, int], names: tuple[str, ...]) -> Reading:
    if len(colours) > _MOST:
        note = f"{len(colours)} colours: a photograph, or edges that were blurred"
        return Reading(kind=kind, notes=(f"{note}; no flag reads them",))
    usual = [r << 16 | g << 8 | b for r, g, b in palette_of(max(21, len(names)))]
    rest = set(colours) - {_VOID_COLOUR}
    if rest <= set(usual):
        classes = {code: usual.index(code) for code in rest}
        note = "the colours are PASCAL VOC's, in its order of classes"
    else:
        ordered = sorted(rest, key=lambda code: (code != 0, -colours[code]))
        classes = {code: i for i, code in enumerate(ordered)}
        note = "classes are numbered black first, then by pixels; that is a guess"
    void = {_VOID_COLOUR: IGNORE} if _VOID_COLOUR in colours else {}
    return _mapped(kind, classes | void, names, note, by_colour=True)


def _mapped(
    kind: str, classes: dict[int, int], names: tuple[str, ...], note: str, by_colour: bool = False
) -> Reading:
    what, text = ("colours", colour_text) if by_colour else ("values", str)
    ordered = sorted(classes.items(), key=lambda pair: pair[1])
    flags = (f"--mask-{what}", *(f"{text(value)}:{label}" for value, label in ordered))
    wanted = max((label for label in classes.values() if label != IGNORE), default=0) + 1
    labels = Labels(names=_named(names, wanted), mapping=tuple(ordered), by_colour=by_colour)
    return Reading(kind=kind, flags=flags, labels=labels, notes=(note,))


def _named(names: tuple[str, ...], wanted: int) -> tuple[str, ...]:
    return names if len(names) >= wanted else tuple(f"class_{i}" for i in range(wanted))


def _colours_of(image: Image.Image, values: Iterable[int]) -> dict[int, int]:
    flat = image.getpalette("RGB") or []
    known = [value for value in values if 3 * value + 2 < len(flat)]
    return {v: flat[3 * v] << 16 | flat[3 * v + 1] << 8 | flat[3 * v + 2] for v in known}


def _index_of_two_colours(masks: Sequence[MaskSeen]) -> str:
    """Return a palette's index that has not one colour in all masks, "" where there is none."""
    first: dict[int, int] = {}
    for mask in masks:
        for value, colour in mask.palette.items():
            if first.setdefault(value, colour) != colour:
                return str(value)
    return ""
