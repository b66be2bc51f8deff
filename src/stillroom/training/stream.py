"""Rows -> micro-batches as they are stored: threads read pictures and targets into (pinned) host
memory.

A row is joined by key: the picture and what the teachers said of it are looked up separately and
must name the same key.
"""

import functools
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.cache.folder import Cache
from stillroom.errors import DamageError, UserError
from stillroom.hashing import keyed_hash
from stillroom.pictures.augment import blur, gamma, hsv, jpeg, mirror, noise, photometric
from stillroom.pictures.dataset import Picture, PictureSet, PictureShard
from stillroom.pictures.keys import is_label_used
from stillroom.pictures.loader import inside_array, mask_array, read_ahead
from stillroom.pictures.pixels import require_pixels
from stillroom.pictures.places import Places
from stillroom.pictures.rows import picture_of, row_at
from stillroom.pictures.views import Views, ViewSource, num_views
from stillroom.recipe import Augment
from stillroom.training.order import MicroBatchSchedule, RowOrder
from stillroom.types import IGNORE, Row

_HELD_BYTES = 2 << 30  # of all rows that a stream of a rank holds in host memory
_NOISE = "noise/"  # no target's name has a slash
_WHOLE, _UNCHANGED = Views(), Augment()
_MAX_SUBSTITUTED = 0.001  # share of rows; more is a broken cache, not bad luck


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A micro-batch as it was read: bytes, not yet decoded; `parts` are named `<target>.<part>`."""

    keys: tuple[str, ...]
    image: Tensor  # (b h w 3) uint8
    mask: Tensor  # (b y x) uint8: pixels, or cells of a region
    inside: Tensor  # (b y x) bool
    boxes: Tensor | None  # (b 4) float32, pixels
    parts: dict[str, Tensor]
    noise: dict[str, Tensor]  # (b,) float32, per target that is right on average only
    mirrored: Tensor | None = None  # (b,) bool: rows whose targets are to be mirrored once decoded


class RowDataset:
    """The rows of one split: pictures, masks and targets by row number.

    A place is a picture, or a region of one; which view of it is shown depends on the pass.
    `size` is its height and width, None = as packed; `regions` are those of a region's mask.
    """

    def __init__(
        self,
        pictures: PictureSet,
        split: str,
        *,
        cache: Cache | None = None,
        targets: tuple[str, ...] = (),
        size: tuple[int, int] | None = None,
        views: ViewSource = _WHOLE,
        regions: tuple[int, int] | None = None,
        label_share: float = 1.0,
        labelled_only: bool = False,
    ) -> None:
        self.pictures, self.cache, self.split = pictures, cache, split
        self.label_share, self._views = label_share, views
        self._size, self._regions = size or pictures.geometry, regions
        self._num_views = num_views(views, split)
        self.places = self._find_places(labelled_only)
        kept = () if cache is None else cache.parts
        parts = [part for part in kept if part.name.partition(".")[0] in targets]
        self.parts = tuple(part.name for part in parts)
        self._target_bytes = sum(part.num_bytes for part in parts)
        self._noisy = tuple(n for n in targets if cache is not None and cache.codecs[n].is_noisy)
        self._target_shard = None if cache is None else functools.cache(cache.reader)
        self._lock = threading.Lock()  # the counts are those of all reading threads
        self.substituted = 0
        self.num_bytes = 0  # that rows were read from
        self.read_rows = 0

    def __len__(self) -> int:
        return len(self.places)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory: picture, labels, and targets as they are stored."""
        assert self._size is not None
        (h, w), (y, x) = self._size, self._regions or self._size
        return h * w * 3 + y * x * 2 + self._target_bytes

    def _find_places(self, labelled_only: bool) -> Places:
        """Return view 0 of each picture, or of each region of one."""

        def is_labelled(shard: PictureShard, i: int) -> bool:
            return shard.has_mask(i) and is_label_used(shard.keys[i], self.label_share)

        places = Places(
            self.pictures,
            self.split,
            self._views,
            regions=self._regions is not None,
            is_wanted=is_labelled if labelled_only else None,
        )
        if not len(places):
            raise UserError(
                f"split {self.split!r} of {self.pictures.path} has no"
                f" {'labelled ' if labelled_only else ''}row",
                found=f"label share {self.label_share}",
                fix="raise --data.label-share, or pack labelled pictures",
            )
        return places

    def fetch(self, number: int) -> None:
        """Have a shard of the split here, pictures and targets, where they lie in a store."""
        shard = self.places.shards[number][0]
        if (fetch := self.pictures.open(shard).fetch) is not None:
            fetch()
        if self.cache is not None and self.parts:
            self.cache.fetcher(shard)()

    def read(self, place: int, number: int = 0) -> tuple[str, dict[str, np.ndarray]]:
        """Return the key of one picture (or region) and arrays `image`, `mask`, `inside`, with
        regions `box`, `<target>.<part>`, and `noise/<target>` where there is any.

        `number` is that of the pass: each shows another view, none twice before all were seen.
        Without a cache every pass draws a new one in its place, but for view 0, which comes as
        often. Raises DamageError for bytes that are not those that were written, UserError for
        pixels that are not those that the teachers saw.
        """
        shard, i, region = self.places.at(place)
        opened = self.pictures.open(shard)
        turn = number + keyed_hash("view", opened.keys[i]) % self._num_views
        view = turn % self._num_views
        if self._target_shard is not None:
            picture, arrays = self._stored(opened, i, region, view)
        else:
            row = row_at(opened, i, region, self._views, turn if view else 0)
            picture, arrays = self._picture(opened, i, row), {}
        with self._lock:
            self.num_bytes += opened.num_bytes(i)
        mask = mask_array(picture)
        if not is_label_used(picture.key, self.label_share):
            mask = np.full_like(mask, IGNORE)
        arrays |= {"image": picture.image, "mask": mask, "inside": inside_array(picture)}
        if picture.box is not None:
            arrays["box"] = np.array(picture.box, np.float32)
        return picture.key, arrays

    def _stored(
        self, shard: PictureShard, i: int, region: int | None, view: int
    ) -> tuple[Picture, dict[str, np.ndarray]]:
        """Return the picture and the targets of a view as the teachers saw it, to the bit."""
        assert self._target_shard is not None
        reader = self._target_shard(shard.info.id)
        at = reader.index(shard.keys[i], region, view)
        row = reader.rows[at]
        picture = self._picture(shard, i, row)
        require_pixels(picture, row, reader.pixels[at], reader.provenance)
        arrays = reader.read(at, parts=self.parts)
        with self._lock:
            self.num_bytes += reader.num_bytes(at, self.parts)
        for name in self._noisy:
            arrays[f"{_NOISE}{name}"] = reader.errors[name][at : at + 1]
        return picture, arrays

    def _picture(self, shard: PictureShard, i: int, row: Row) -> Picture:
        assert self._size is not None
        return picture_of(shard.read(i), row, self._size, self._regions)

    def read_or_substitute(
        self, place: int, number: int, may_substitute: bool
    ) -> tuple[str, dict[str, np.ndarray]]:
        """Read as above; where it is damaged and that is allowed, the next that is not, counted."""
        with self._lock:
            self.read_rows += 1
        for tried in range(len(self)):
            try:
                return self.read((place + tried) % len(self), number)
            except DamageError:
                if not may_substitute:
                    raise
                with self._lock:
                    self.substituted += 1
                    too_many = self.substituted > max(1.0, _MAX_SUBSTITUTED * self.read_rows)
                if too_many:
                    raise
        raise DamageError(f"no readable row in split {self.split!r}")


def training_batches(
    dataset: RowDataset,
    order: RowOrder,
    schedule: MicroBatchSchedule,
    steps: range,
    *,
    augment: Augment,
    seed: int,
    workers: int,
    pin: bool,
    may_substitute: bool = False,
    before: Callable[[int], None] = lambda position: None,
) -> Generator[StoredBatch, None, None]:
    """Yield this rank's micro-batches of the given steps, in order, read ahead by `workers`
    threads; `before` is called with each one's first position before it is read.
    """

    def jobs() -> Iterator[tuple[int, int]]:
        for step in steps:
            for micro in micros:
                before(schedule.positions(step, micro).start)
                yield step, micro

    def read(job: tuple[int, int]) -> StoredBatch:
        rows = []
        for position in schedule.positions(*job):
            number, place = order.at(position)
            key, arrays = dataset.read_or_substitute(place, number, may_substitute)
            rows.append(
                (key, _augmented(arrays, augment, keyed_hash("augment", seed, number, key)))
            )
        return collate(rows, pin)

    micros = schedule.micro_batches()
    size = len(schedule.positions(steps.start, micros[0]))
    depth = _depth(size * dataset.row_bytes, len(micros), workers)
    return read_ahead(jobs(), read, workers, depth)


def validation_batches(
    dataset: RowDataset, size: int, rank: int, world: int, *, workers: int, pin: bool
) -> Generator[StoredBatch, None, None]:
    """Yield this rank's batches of a whole split, unaugmented; ranks may get unequal numbers."""
    starts = range(0, len(dataset), size)[rank::world]

    def read(start: int) -> StoredBatch:
        rows = range(start, min(start + size, len(dataset)))
        return collate([dataset.read(row) for row in rows], pin)

    return read_ahead(starts, read, workers, _depth(size * dataset.row_bytes, 1, workers))


def _depth(micro_bytes: int, micros: int, workers: int) -> int:
    """Return how many micro-batches are read ahead: the next step's, of which there are `micros` on
    this rank, while threads have work beyond it and memory allows.

    Held at most are these, those of the step under way, and one a thread as rows beside the tensors
    that they are stacked into: together 2 GiB, or two steps and the threads' where that is more,
    since a step takes all of its own at once. Validation has its own stream, beside what training
    has read ahead; page-locked memory is handed out in powers of two, up to twice as much.
    """
    allowed = _HELD_BYTES // micro_bytes - micros - workers
    return max(micros, min(micros + max(micros, workers), allowed))


def collate(rows: list[tuple[str, dict[str, np.ndarray]]], pin: bool) -> StoredBatch:
    """Stack rows into one batch in host memory, page-locked where `pin`."""
    tensors = {}
    for name, first in rows[0][1].items():
        dtype = torch.from_numpy(first[:0]).dtype
        out = torch.empty((len(rows), *first.shape), dtype=dtype, pin_memory=pin)
        np.stack([arrays[name] for _, arrays in rows], out=out.numpy())
        tensors[name] = out
    image, mask, inside = (tensors.pop(name) for name in ("image", "mask", "inside"))
    boxes, mirrored = tensors.pop("box", None), tensors.pop("mirrored", None)
    mirrored = None if mirrored is None else mirrored[:, 0]
    noisy = [name for name in tensors if name.startswith(_NOISE)]
    noise = {name.removeprefix(_NOISE): tensors.pop(name)[:, 0] for name in noisy}
    keys = tuple(key for key, _ in rows)
    return StoredBatch(keys, image, mask, inside, boxes, tensors, noise, mirrored)


def _augmented(arrays: dict[str, Any], augment: Augment, seed: int) -> dict[str, Any]:
    if augment == _UNCHANGED:
        return arrays
    generator = np.random.Generator(np.random.PCG64(seed))
    if augment.mirror:
        mirrored = generator.random() < 0.5
        arrays |= {"mirrored": np.array([mirrored])}
        arrays |= _mirrored(arrays) if mirrored else {}
    image = arrays["image"]
    if augment.photometric:
        image = photometric(image, augment.photometric, generator)
    if augment.hsv:
        image = hsv(image, augment.hsv, generator)
    if augment.gamma:
        image = gamma(image, augment.gamma, generator)
    if augment.blur and _is_drawn(augment.degraded, generator):
        image = blur(image, augment.blur, generator)
    if augment.noise and _is_drawn(augment.degraded, generator):
        image = noise(image, augment.noise, generator)
    if augment.jpeg and _is_drawn(augment.degraded, generator):
        image = jpeg(image, augment.jpeg, generator)
    return arrays | {"image": image}


def _is_drawn(share: float, generator: np.random.Generator) -> bool:
    return share == 1 or generator.random() < share


def _mirrored(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return picture, mask, `inside` and box mirrored; targets are, once they are decoded."""
    found = {name: mirror(arrays[name]) for name in ("image", "mask", "inside")}
    if "box" in arrays:
        x0, y0, x1, y1 = arrays["box"]
        width = arrays["image"].shape[1]
        found["box"] = np.array([width - x1, y0, width - x0, y1], np.float32)
    return found
