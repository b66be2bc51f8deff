"""The command that packs a source into shards: which pictures, which split, which classes."""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from stillroom.errors import UserError
from stillroom.pictures.decode import BadPicture
from stillroom.pictures.keys import key_of, share_of
from stillroom.pictures.labels import (
    Labels,
    decide_labels,
    parse_mask_colours,
    parse_mask_values,
)
from stillroom.pictures.loader import num_decoders, read_ahead
from stillroom.pictures.pack import pack, refuse_existing
from stillroom.pictures.prepare import Fit, Geometry, PictureFormat, Prepared, prepare
from stillroom.pictures.sources import PICTURE_SUFFIXES, Item, parse_source, read_names

DEFAULT_VAL_SHARE = 0.1
_Keyed = tuple[str, Item]


def make_shards(
    source: tyro.conf.Positional[str],
    *,
    out: Path,
    size: tuple[int, int] | None = None,
    fit: Fit = "stretch",
    format: PictureFormat = "jpg",
    shard_rows: int = 256,
    val: str | None = None,
    val_list: Path | None = None,
    val_share: float | None = None,
    val_seed: int = 0,
    categories: tuple[str, ...] = (),
    classes: str | None = None,
    mask_values: tuple[str, ...] = (),
    mask_colours: tuple[str, ...] = (),
    skip_bad: bool = False,
) -> None:
    """Pack pictures and masks into WebDataset shards, the input of everything else.

    Args:
        source: voc:PATH, voc2012:PATH (fetched there), folders:IMAGES,MASKS, unlabelled:PATH,
            coco:IMAGES,JSON
        out: new folder, e.g. shards/people
        size: height and width in pixels that every picture is brought to; training needs one size
        fit: stretch to that size, or letterbox within grey padding that nothing counts
        format: jpg (quality 95, 4:4:4) or png; unresized files of that format keep their bytes
        shard_rows: pictures a shard; so many lie in memory at a time, encoded
        val: another source for the validation split
        val_list: file with the names of the pictures of the validation split, one a line
        val_share: share of the pictures for the validation split, by hash of the key; default 0.1
            where nothing else says which; 0 for no validation split
        val_seed: draws another such share
        categories: those of a COCO source that become classes 1 and up; default: all
        classes: number of classes, or a file with one name a line; default: as source or masks say
        mask_values: how mask values become classes, e.g. 0:0 255:1 for black and white masks
        mask_colours: how the colours of RGB masks become classes, e.g. 0,0,0:0 128,0,0:1
        skip_bad: leave out bad pictures and list them, instead of stopping at the first
    """
    refuse_existing(out)
    if shard_rows < 1:
        raise UserError("--shard-rows is out of range", found=shard_rows, wanted="1 or more")
    geometry, bad = _geometry(size, fit), BadPictures(skip_bad)
    chosen = Validation(val, val_list, val_share, val_seed)
    names, splits = splits_of(source, categories, chosen, bad)
    items = [item for rows in splits.values() for _, item in rows]
    labels = labels_of(classes, names, mask_values, mask_colours, items)
    ready = functools.partial(_prepared, labels=labels, geometry=geometry, picture_format=format)
    with tqdm(total=len(items), unit="picture", disable=None, desc=out.name) as bar:
        shards = pack(
            out,
            {split: bad.without(rows, ready, bar) for split, rows in splits.items()},
            classes=labels.names,
            geometry=geometry,
            picture_format=format,
            shard_rows=shard_rows,
        )
    bad.report()
    rows, size_mb = sum(info.rows for info in shards), sum(info.size for info in shards) / 1e6
    print(f"{out}: {rows} pictures in {len(shards)} shards, {size_mb:.1f} MB{_note(geometry)}")


def _note(geometry: Geometry | None) -> str:
    return "" if geometry else "\nnote: training needs pictures of one size: --size H W"


def labels_of(
    classes: str | None,
    names: tuple[str, ...],
    mask_values: tuple[str, ...],
    mask_colours: tuple[str, ...],
    items: Iterable[Item],
) -> Labels:
    """Return what the masks mean by the flags, or by the masks themselves; raises UserError."""
    if mask_values and mask_colours:
        raise UserError("--mask-values and --mask-colours exclude each other", fix="leave one out")
    mapping = parse_mask_values(mask_values) or parse_mask_colours(mask_colours)
    return decide_labels(classes, names, mapping, items, by_colour=bool(mask_colours))


def _prepared(
    row: _Keyed, labels: Labels, geometry: Geometry | None, picture_format: PictureFormat
) -> Prepared | BadPicture:
    try:
        return prepare(*row, labels, geometry, picture_format)
    except BadPicture as error:
        return error


def _geometry(size: tuple[int, int] | None, fit: Fit) -> Geometry | None:
    if size is not None:
        return Geometry(height=size[0], width=size[1], fit=fit)
    if fit == "letterbox":
        raise UserError("--fit letterbox needs a size", fix="--size H W")
    return None


class BadPictures:
    """What is left out: kept and reported with `--skip-bad`, otherwise the first is raised."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.errors: list[BadPicture] = []

    def add(self, error: BadPicture) -> None:
        if not self.skip:
            fix = error.fix or "mend it, or leave out such pictures with --skip-bad"
            raise BadPicture(error.what, found=error.found, wanted=error.wanted, fix=fix)
        self.errors.append(error)

    def without(
        self, rows: list[_Keyed], ready: Callable[[_Keyed], Prepared | BadPicture], bar: tqdm
    ) -> Iterator[Prepared]:
        """Yield what can be packed, in order, decoded and encoded in threads."""
        workers = num_decoders()
        for result in read_ahead(rows, ready, workers, depth=2 * workers):
            bar.update()
            if isinstance(result, BadPicture):
                self.add(result)
            else:
                yield result

    def report(self) -> None:
        if self.errors:
            lines = (" ".join(str(error).split()) for error in self.errors)
            print(f"left out {len(self.errors)} bad pictures:", *lines, sep="\n  ", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class Validation:
    """How the validation split is chosen: another source, a list of names, or a share by hash."""

    source: str | None
    names: Path | None
    share: float | None
    seed: int

    def refuse_two(self, has_list: bool) -> None:
        """Raise UserError where more than one says what the split is."""
        ways = {
            "--val-share": self.share is not None,
            "--val-list": self.names is not None,
            "--val": self.source is not None,
            "the source's own val list": has_list,
        }
        said = [way for way, is_said in ways.items() if is_said]
        if len(said) > 1 and said != ["--val", "the source's own val list"]:
            raise UserError(f"{said[0]} and {said[1]} exclude each other", fix="leave one out")
        if self.share is not None and not 0 <= self.share < 1:
            raise UserError(
                "--val-share is out of range", found=self.share, wanted="0 <= share < 1"
            )

    def takes(self, rows: list[_Keyed]) -> set[str]:
        """Return the keys that are held out of a source without a list of its own."""
        if self.names is None:
            share = DEFAULT_VAL_SHARE if self.share is None else self.share
            purpose = f"val/{self.seed}" if self.seed else "val"
            return {key for key, _ in rows if share_of(key, purpose) < share}
        listed = set(read_names(self.names))
        if missing := listed - {item.name for _, item in rows}:
            raise UserError(
                f"{self.names} names {len(missing)} pictures that the source does not have",
                found=min(missing),
                wanted="names as the source has them, without suffix",
            )
        return {key for key, item in rows if item.name in listed}


def splits_of(
    text: str, categories: tuple[str, ...], chosen: Validation, bad: BadPictures
) -> tuple[tuple[str, ...], dict[str, list[_Keyed]]]:
    """Return the class names that the sources know, and each split's pictures in an order by hash
    of the key: every shard is a sample of them all, not neighbours in a film.
    """
    source = parse_source(text, categories)
    has_list = "val" in source.splits
    chosen.refuse_two(has_list)
    names, seen = source.class_names, {}
    train = _keyed(source.splits["train"], seen, bad)
    if chosen.source is not None:
        other = parse_source(chosen.source, categories)
        if names and other.class_names and names != other.class_names:
            found = other.class_names
            raise UserError("the sources have different classes", found=found, wanted=names)
        names = names or other.class_names
        held_out = _keyed(other.splits["val" if "val" in other.splits else "train"], seen, bad)
    elif has_list:
        held_out = _keyed(source.splits["val"], seen, bad)
    else:
        keys = chosen.takes(train)
        held_out = [row for row in train if row[0] in keys]
        train = [row for row in train if row[0] not in keys]
    splits = {"train": train, "val": held_out}
    if chosen.share == 0 and not held_out:
        del splits["val"]
    for split, rows in splits.items():
        if not rows:
            _refuse_empty(split, len(seen))
    return names, splits


def _keyed(items: Iterable[Item], seen: dict[str, Item], bad: BadPictures) -> list[_Keyed]:
    """Return (key, item) ordered by hash of the key; a key that was seen before is bad."""
    rows = []
    for item in items:
        try:
            key = key_of(item.name)
        except UserError as error:
            bad.add(BadPicture(f"{item.picture}: {error.what}", fix=error.fix))
            continue
        if (first := seen.setdefault(key, item)) is item:
            rows.append((key, item))
        else:
            found = f"{first.picture} and {item.picture}"
            fix = "rename one, or list it once; --skip-bad keeps the first"
            bad.add(BadPicture(f"two pictures with the key {key}", found=found, fix=fix))
    return sorted(rows, key=lambda row: share_of(row[0], "shard"))


def _refuse_empty(split: str, num_pictures: int) -> None:
    if num_pictures == 0:
        raise UserError("the source holds no picture", wanted=f"files {' '.join(PICTURE_SUFFIXES)}")
    raise UserError(
        f"the split {split!r} is empty",
        found=f"0 of {num_pictures} pictures",
        fix="another --val-share (0 for no validation split), or --val SOURCE",
    )
