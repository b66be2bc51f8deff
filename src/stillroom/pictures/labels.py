"""What mask values mean: class names, the palette, and the way from values to classes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from stillroom.errors import UserError
from stillroom.pictures.decode import BadPicture, decode_colours, decode_labels, open_picture
from stillroom.pictures.sources import Item, read_class_names
from stillroom.types import IGNORE

_MAX_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The classes of a data set, and (value in the source, class) where values are mapped; values
    are colours, as `decode_colours` gives them, where `by_colour`.
    """

    names: tuple[str, ...]
    mapping: tuple[tuple[int, int], ...] = ()
    by_colour: bool = False

    def read(self, path: Path) -> UInt8[np.ndarray, "h w"]:
        """Return a mask file's class indices, 255 = ignore; raises BadPicture that lists what is no
        class.
        """
        decode = decode_colours if self.by_colour else decode_labels
        return self.translate(decode(open_picture(path)[1], path), path)

    def known(self) -> dict[int, int]:
        """Return the class of every value that has one."""
        known = dict(self.mapping) or {number: number for number in range(len(self.names))}
        return known if self.by_colour else {IGNORE: IGNORE} | known

    def translate(self, values: Int[np.ndarray, "h w"], path: Path) -> UInt8[np.ndarray, "h w"]:
        """Return the same of a mask's values; `path` is for the message only."""
        known = self.known()
        sources = np.array(sorted(known))
        places = np.searchsorted(sources, values).clip(max=len(sources) - 1)
        if (strange := sources[places] != values).any():
            found = np.unique(values[strange]).tolist()
            raise BadPicture(
                f"{path} has {'colours' if self.by_colour else 'label values'} outside the classes",
                found=shown(map(colour_text, found) if self.by_colour else found),
                wanted=self._wanted(),
                fix="--classes N, or --mask-values FROM:TO ... (--mask-colours R,G,B:TO ...) for"
                " every value that occurs; stillroom check-data SOURCE finds them",
            )
        return np.array([known[int(value)] for value in sources], np.uint8)[places]

    def _wanted(self) -> str:
        if not self.mapping:
            return f"0 to {len(self.names) - 1}, or {IGNORE} for ignore"
        return ", ".join(map(colour_text if self.by_colour else str, sorted(self.known())))


def colour_text(code: int) -> str:
    """Return a colour as `R,G,B`, from the number that `decode_colours` makes of it."""
    return f"{code >> 16},{code >> 8 & 255},{code & 255}"


def parse_mask_colours(texts: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Return pairs of colour and class of `0,0,0:0 128,0,0:1`; raises UserError on anything
    else.
    """
    found = [re.fullmatch(r"(\d{1,3}),(\d{1,3}),(\d{1,3}):(\d{1,3})", text) for text in texts]
    numbers = [tuple(map(int, pair.groups())) for pair in found if pair]
    is_legal = all(max(four) <= 255 for four in numbers)
    pairs = tuple((r << 16 | g << 8 | b, label) for r, g, b, label in numbers)
    if not is_legal or len(dict(pairs)) != len(texts):
        raise UserError(
            "--mask-colours not understood",
            found=" ".join(texts),
            wanted="R,G,B:CLASS, e.g. 128,0,0:1, each colour once, numbers of 0 to 255",
        )
    return pairs


def parse_mask_values(texts: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Return the pairs of `0:0 255:1`; raises UserError on anything else."""
    found = [re.fullmatch(r"([0-9]{1,5}):([0-9]{1,3})", text) for text in texts]
    pairs = tuple((int(pair[1]), int(pair[2])) for pair in found if pair)
    is_legal = all(a <= 65535 and b <= IGNORE for a, b in pairs)
    if not is_legal or len(dict(pairs)) != len(texts):
        raise UserError(
            "--mask-values not understood",
            found=" ".join(texts),
            wanted="FROM:TO, e.g. 255:1, each value once, 0..65535 to 0..255",
        )
    return pairs


def decide_labels(
    classes: str | None,
    source_names: tuple[str, ...],
    mapping: tuple[tuple[int, int], ...],
    items: Iterable[Item],
    by_colour: bool = False,
) -> Labels:
    """Return the labels by `--classes`, the source's own names, or the values in its masks.

    Raises UserError where masks hold only 0 and 255 and nobody said what that means, and where
    classes cannot be told.
    """
    masks = [item.mask for item in items if item.mask is not None]
    names = _named(classes) or source_names
    if mapping:
        targets = {value for _, value in mapping if value != IGNORE}
        names = names or tuple(f"class_{i}" for i in range(max(targets, default=0) + 1))
        if outside := sorted(value for value in targets if value >= len(names)):
            flag = "--mask-colours" if by_colour else "--mask-values"
            raise UserError(
                f"{flag} maps to a class that does not exist",
                found=shown(outside),
                wanted=f"0 to {len(names) - 1}, or {IGNORE} for ignore",
            )
    elif masks:
        values = _values(masks, all_of_them=not names)
        if values == {0, IGNORE}:
            _refuse_binary()
        names = names or _inferred(values)
    return Labels(names=names, mapping=mapping, by_colour=by_colour)


def palette_of(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Return the colours of PASCAL VOC.

    The bits of a class number are dealt to red, green and blue in turn, from the top bit down.
    """

    def channel(number: int, first_bit: int) -> int:
        return sum(((number >> (3 * place + first_bit)) & 1) << (7 - place) for place in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(num_classes))


def shown(values: Iterable[object]) -> str:
    """Return a list of values as text, cut where it becomes unreadable."""
    listed = [str(value) for value in values]
    rest = f" and {len(listed) - _MAX_SHOWN} more" if len(listed) > _MAX_SHOWN else ""
    return ", ".join(listed[:_MAX_SHOWN]) + rest


def _named(classes: str | None) -> tuple[str, ...]:
    if classes is None:
        return ()
    if not (classes.isascii() and classes.isdigit()):
        return read_class_names(Path(classes))
    if not 1 <= int(classes) <= IGNORE:
        raise UserError("--classes not understood", found=classes, wanted="1 to 255, or a file")
    return tuple(f"class_{i}" for i in range(int(classes)))


def _values(masks: list[Path], all_of_them: bool) -> set[int]:
    """Return the values that occur, or enough of them to see that they are not just 0 and 255."""
    values: set[int] = set()
    for path in masks:
        try:
            values.update(np.unique(decode_labels(open_picture(path)[1], path)).tolist())
        except BadPicture:
            continue  # packing meets it again, and reports it
        if not all_of_them and values - {0, IGNORE}:
            break
    return values


def _refuse_binary() -> None:
    raise UserError(
        "the masks are 0/255 masks of a binary task: 255 would be read as ignore, so that "
        "nothing is foreground",
        found="only the values 0 and 255 in all masks",
        wanted="0 = background, 1 = foreground, 255 = ignore",
        fix="--mask-values 0:0 255:1",
    )


def _inferred(values: set[int]) -> tuple[str, ...]:
    labels = sorted(values - {IGNORE})
    if not labels or labels != list(range(len(labels))):
        raise UserError(
            "cannot tell the number of classes from the masks",
            found=f"values {shown(labels)}" if labels else "no label at all",
            wanted="0, 1, 2 ... without gaps",
            fix="--classes N or --classes FILE with one name a line",
        )
    return tuple(f"class_{i}" for i in labels)
