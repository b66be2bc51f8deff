"""Pictures and videos through a student: blends, masks or cutouts, with counts as CSV."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from stillroom.errors import UserError
from stillroom.pictures.decode import BadPicture, open_picture, to_rgb
from stillroom.pictures.draw import Rgb
from stillroom.pictures.loader import num_decoders, read_ahead
from stillroom.using.answers import Counts, Mode, names_and_palette, save_probabilities, shown
from stillroom.using.inputs import Input
from stillroom.using.resampling import mask_at, tiled
from stillroom.using.student import Box, Trained

Item = TypeVar("Item")
AnyRgb = UInt8[np.ndarray, "_ _ 3"]  # of a size of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is written, and how pictures are looked at."""

    mode: Mode = "blend"
    probabilities: bool = False  # of pictures: 16-bit PNG files beside them
    tiles: bool = False  # of pictures: at their own scale, in tiles of the network's size
    batch: int = 1  # pictures of a forward pass
    show: bool = False  # of videos: in a window too
    boxes: Sequence[Box] = ()  # of each picture, for a student of boxes


def predict(trained: Trained, inputs: Sequence[Input], out: Path, options: Options) -> None:
    """Write what each input is to become, and `counts.csv`, into `out`.

    Unreadable pictures are left out and named at the end: UserError, once all others are done.
    """
    from stillroom.using.video import predict_video

    out.mkdir(parents=True, exist_ok=True)
    pictures = [job for job in inputs if not job.is_video]
    with (out / "counts.csv").open("w", newline="", encoding="utf-8") as file:
        counts = Counts(file, names_and_palette(trained)[0])
        bad = []
        with tqdm(total=len(pictures), unit="picture", disable=None if pictures else True) as bar:
            for some in batches(_read(pictures), options.batch):
                bad += [image.what for _, image in some if isinstance(image, BadPicture)]
                good = [(job, image) for job, image in some if isinstance(image, np.ndarray)]
                _predict(trained, good, counts, options)
                bar.update(len(some))
        for job in inputs:
            if job.is_video:
                predict_video(trained, job, counts, options.mode, options.batch, options.show)
    if bad:
        others = f"; the others are in {out}" if len(bad) < len(inputs) else ""
        raise UserError(
            f"{len(bad)} of {len(inputs)} inputs could not be read{others}",
            found="; ".join(bad[:5]),
        )


def batches(items: Iterable[Item], number: int) -> Iterator[list[Item]]:
    """Yield lists of `number` items, the last of what is left."""
    left = iter(items)
    return iter(lambda: list(islice(left, number)), [])


def _read(jobs: Sequence[Input]) -> Iterator[tuple[Input, Rgb | BadPicture]]:
    """Yield pictures as threads decode them, or what is wrong with them."""

    def decoded(job: Input) -> Rgb | BadPicture:
        try:
            return _rgb(job.source)
        except BadPicture as error:
            return error

    workers = num_decoders()
    return zip(jobs, read_ahead(jobs, decoded, workers, depth=workers + 1), strict=True)


def _rgb(path: Path) -> Rgb:
    return np.array(to_rgb(open_picture(path)[1], path))


def first_picture(inputs: Sequence[Input]) -> Rgb:
    """Return the first picture among the inputs; UserError where there is none, or a broken one."""
    for job in inputs:
        if not job.is_video:
            return _rgb(job.source)
    raise UserError(
        "--fps measures with a picture, and no input is one", fix="name a picture beside the others"
    )


def _predict(
    trained: Trained, some: Sequence[tuple[Input, AnyRgb]], counts: Counts, options: Options
) -> None:
    palette = names_and_palette(trained)[1]
    for (job, image), box in product(some, options.boxes):
        mask = trained.mask(image, box)
        job.target.parent.mkdir(parents=True, exist_ok=True)
        name = "-".join(f"{side:g}" for side in box)
        target = job.target.with_name(f"{job.target.stem}.box-{name}{job.target.suffix}")
        shown(image, mask, palette, options.mode).save(target)
        counts.add(f"{job.name}, box {name}", mask)
    if options.boxes:
        return
    found = _logits(trained, [image for _, image in some], options.tiles)
    for (job, image), logits in zip(some, found, strict=True):
        mask = mask_at(logits, image.shape[:2])
        job.target.parent.mkdir(parents=True, exist_ok=True)
        shown(image, mask, palette, options.mode).save(job.target)
        if options.probabilities:
            save_probabilities(logits, image.shape[:2], job.target)
        counts.add(job.name, mask)


def _logits(
    trained: Trained, images: Sequence[AnyRgb], tiles: bool
) -> list[Float[Tensor, "k _ _"]]:
    if tiles:
        return [
            tiled(image, trained.size, lambda tile: trained.small_logits([tile])[0])
            for image in images
        ]
    return trained.small_logits(images) if images else []
