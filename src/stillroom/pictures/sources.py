"""Where pictures come from: `voc:PATH`, `voc2012:PATH`, `folders:IMAGES,MASKS`, `unlabelled:PATH`,
`coco:IMAGES,ANNOTATIONS`.

A source only names files, item by item and split by split; `prepare.py` opens them. A picture or
mask that is missing is still named, so that there is one place that reports it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stillroom.errors import UserError, first_line
from stillroom.jsonfile import read_bytes

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_VOC_NAMES = """background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog
horse motorbike person pottedplant sheep sofa train tvmonitor"""
VOC_CLASSES = tuple(_VOC_NAMES.split())
_MAX_LIST_BYTES = 1 << 26  # of a split's names, or of the classes'
_SPLITS = ("train", "val")
_NUM_PATHS = {"voc": 1, "voc2012": 1, "unlabelled": 1, "folders": 2, "coco": 2}
_FORMS = (
    "voc:PATH, folders:IMAGES,MASKS or unlabelled:PATH, voc2012:PATH or coco:IMAGES,ANNOTATIONS"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One thing on a picture: its class (255 = a crowd, which is ignored) and COCO's polygons or
    run lengths of it.
    """

    label: int
    segmentation: list[list[float]] | dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One picture: its name in the source (no suffix, `/` between folders), its file, and its mask,
    or the instances that make one.
    """

    name: str
    picture: Path
    mask: Path | None = None
    instances: tuple[Instance, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Pictures by split; `class_names` are empty where the source does not know them."""

    class_names: tuple[str, ...] = ()
    splits: Mapping[str, list[Item]]


def parse_source(text: str, categories: Sequence[str] = ()) -> Source:
    """Return the source that a command line names; raises UserError where there is none.

    `categories` are those of COCO's that are wanted, none = all.
    """
    kind, _, rest = text.partition(":")
    paths = rest.split(",") if kind in ("coco", "folders") else [rest]
    if categories and kind != "coco":
        raise UserError("--categories are COCO's", found=text, wanted="coco:IMAGES,ANNOTATIONS")
    if len(paths) != _NUM_PATHS.get(kind) or not all(paths):
        raise UserError("no such source", found=text, wanted=_FORMS)
    if kind == "voc":
        return _voc(Path(rest))
    if kind == "voc2012":
        return _voc(_fetched(Path(rest)))
    images = _folder(paths[0], text)
    if kind == "coco":
        from stillroom.pictures.coco import coco_source  # it knows the items of this module

        return coco_source(images, Path(paths[1]), categories)
    masks = _folder(paths[1], text) if kind == "folders" else None
    if masks is not None and (_contains(images, masks) or _contains(masks, images)):
        raise UserError(
            f"{text}: one folder lies in the other, so masks would be taken for pictures",
            fix="give two folders beside each other",
        )
    return Source(splits={"train": list(_folder_items(images, masks))})


def _voc(path: Path) -> Source:
    """Return the source of a folder as PASCAL VOC's, or below one."""
    levels = ("", "VOC2012", "VOC2007", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007")
    roots = tuple(path / level for level in levels)
    wanted = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    root = next((root for root in roots if (root / "ImageSets").is_dir()), path)
    if missing := [name for name in wanted if not (root / name).is_dir()]:
        raise UserError(
            f"{path} is no VOC folder",
            found=f"no {', no '.join(missing)} in {root}",
            wanted=f"{', '.join(wanted)} in it or below it in {', '.join(levels[1:])}",
        )
    lists = {split: root / "ImageSets" / "Segmentation" / f"{split}.txt" for split in _SPLITS}
    if not lists["train"].is_file():
        raise UserError(f"{lists['train']} is missing")
    listed = next((f for f in (path / "classes.txt", root / "classes.txt") if f.is_file()), None)
    return Source(
        class_names=read_class_names(listed) if listed else VOC_CLASSES,
        splits={s: list(_voc_items(root, file)) for s, file in lists.items() if file.is_file()},
    )


def _voc_items(root: Path, names: Path) -> Iterator[Item]:
    folder = root / "JPEGImages"
    for name in _lines(names, "surrogateescape"):
        refuse_elsewhere(name, names)
        paths = (folder / f"{name}{suffix}" for suffix in (".jpg", ".jpeg", ".png"))
        picture = next((path for path in paths if path.is_file()), folder / f"{name}.jpg")
        yield Item(name=name, picture=picture, mask=root / "SegmentationClass" / f"{name}.png")


def _folder_items(images: Path, folder: Path | None) -> Iterator[Item]:
    """Yield every picture, with or without a mask of its relative name, then every mask that has no
    picture.
    """
    masks = {} if folder is None else _by_name(folder)
    for picture in _files(images):
        name = _name(picture, images)
        mask = None if folder is None else folder / f"{name}.png"
        yield Item(name=name, picture=picture, mask=masks.pop(name, mask))
    for name, mask in masks.items():
        yield Item(name=name, picture=images / f"{name}.jpg", mask=mask)


def _fetched(path: Path) -> Path:
    """Return a folder in which PASCAL VOC 2012 lies: about 2 GB, fetched by torchvision once."""
    if not (path / "VOCdevkit" / "VOC2012" / "ImageSets").is_dir():
        from torchvision.datasets import VOCSegmentation

        try:
            VOCSegmentation(str(path), year="2012", image_set="train", download=True)
        except (OSError, RuntimeError) as error:  # no net; a file that is not what was published
            raise UserError(
                "PASCAL VOC 2012 could not be fetched",
                found=first_line(error),
                fix=f"put VOCtrainval_11-May-2012.tar into {path}, or unpack it and say voc:PATH",
            ) from None
    return path


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the names in a text file, one a line; raises UserError where they are no names."""
    try:
        names = tuple(_lines(path, "strict"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read class names from {path}: {error}") from None
    if not names or len(set(names)) != len(names) or len(names) > 255:
        raise UserError(
            f"{path} does not name classes",
            found=f"{len(names)} names, {len(set(names))} different",
            wanted="1 to 255 different names, one a line",
        )
    return names


def read_names(path: Path) -> tuple[str, ...]:
    """Return the names of pictures in a text file, one a line; raises UserError."""
    try:
        return tuple(_lines(path, "surrogateescape"))
    except OSError as error:
        raise UserError(f"cannot read names of pictures from {path}: {error}") from None


def _lines(path: Path, errors: str) -> list[str]:
    """Return a text file's lines without the spaces around them and without the empty ones."""
    text = read_bytes(path, _MAX_LIST_BYTES, links=True).decode(errors=errors)
    return [line.strip() for line in text.split("\n") if line.strip()]


def refuse_elsewhere(name: str, path: Path) -> None:
    """Raise UserError for a name that leads out of the source's folders, or can be no file's."""
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or "\0" in name or len(name) > 200:
        raise UserError(
            f"{path} names a picture outside its folder",
            found=f"{name!r:.80}",
            wanted="names below it, without .., of at most 200 letters",
        )


def _folder(text: str, source: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise UserError(f"{source}: there is no folder {path}")
    return path


def _contains(outer: Path, inner: Path) -> bool:
    return inner.resolve().is_relative_to(outer.resolve())


def _files(folder: Path) -> Iterator[Path]:
    """Yield the picture files below a folder, links followed, hidden files left out."""
    seen = set()
    for top, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(top)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        paths = (Path(top, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _by_name(folder: Path) -> dict[str, Path]:
    masks: dict[str, Path] = {}
    for path in _files(folder):
        if (other := masks.setdefault(_name(path, folder), path)) != path:
            raise UserError("two masks for one picture", found=f"{other} and {path}")
    return masks
