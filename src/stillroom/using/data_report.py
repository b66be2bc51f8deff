"""What was found in a source of pictures and masks, as values."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from stillroom.losses.class_weights import balanced
from stillroom.pictures.labels import colour_text
from stillroom.pictures.sources import Item
from stillroom.types import IGNORE
from stillroom.using.mask_reading import MaskSeen, Reading, total


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one picture and its mask hold; `problem` is why they cannot be packed."""

    split: str
    key: str
    item: Item
    sha256: str = ""
    bits: int = 0
    size: tuple[int, int] | None = None  # height, width in pixels, upright
    mask: MaskSeen | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        return f"{self.split}/{self.item.name}"


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What was found in a source; `problems` keep pictures from being packed."""

    source: str
    seen: tuple[Seen, ...]
    reading: Reading
    problems: tuple[str, ...]
    exact: tuple[tuple[Seen, ...], ...] = ()  # groups with equal bytes
    near: tuple[tuple[Seen, Seen, int], ...] = ()  # of two splits, with the bits that differ
    more: tuple[str, ...] = ()  # notes on single masks

    @property
    def leaks(self) -> tuple[tuple[Seen, ...], ...]:
        """Groups of equal pictures that lie in more than one split."""
        return tuple(group for group in self.exact if len({one.split for one in group}) > 1)

    @property
    def is_unread(self) -> bool:
        """True where there are masks and no flag reads them."""
        return self.reading.labels is None and any(one.mask for one in self.seen)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(sorted({one.split for one in self.seen}))

    @cached_property
    def is_by_colour(self) -> bool:
        labels = self.reading.labels
        return labels.by_colour if labels else "colours" in self.reading.kind

    def values(self, masks: Sequence[MaskSeen]) -> dict[int, int]:
        """Return the pixels of each value, or colour where these are read, of some masks."""
        return total(m.by_colour() if self.is_by_colour else m.pixels for m in masks)

    def as_json(self) -> dict[str, Any]:
        """Return everything that was found, for machines."""
        sizes = [one.size for one in self.seen if one.size]
        value = colour_text if self.is_by_colour else str
        masks = [one.mask for one in self.seen if one.mask]
        return {
            "source": self.source,
            "splits": {s: sum(one.split == s for one in self.seen) for s in self.splits},
            "masks": len(masks),
            "masks_are": self.reading.kind,
            "flags": list(self.reading.flags),
            "notes": [*self.reading.notes, *self.more],
            "values": {value(v): pixels for v, pixels in self.values(masks).items()},
            "classes": self.class_table(),
            "sizes": [[*size, sizes.count(size)] for size in sorted(set(sizes))],
            "problems": list(self.problems),
            "equal": [[one.name for one in group] for group in self.exact],
            "near": [[one.name, other.name, bits] for one, other, bits in self.near],
        }

    def class_table(self) -> list[dict[str, Any]]:
        """Return a row for each class and one for void: share of the pixels, pictures, and the
        weight that balances the training split; none where masks cannot be read.
        """
        labels, of_masks = self.reading.labels, [one for one in self.seen if one.mask]
        if labels is None or not of_masks:
            return []
        counts = np.stack([self._class_pixels(one) for one in of_masks])
        train = counts[[one.split == "train" for one in of_masks], :-1].sum(0).tolist()
        weights = balanced(train) if any(train) else [None] * len(train)
        shares = counts.sum(0) / (counts.sum() or 1)
        columns = zip(labels.names, shares, (counts > 0).sum(0), weights, strict=False)
        rows = [
            {"name": name, "share": float(share), "pictures": int(pictures), "weight": weight}
            for name, share, pictures, weight in columns
        ]
        return [*rows, {"name": "void", "share": float(shares[-1])}]

    def _class_pixels(self, one: Seen) -> Int[np.ndarray, "k"]:
        """Return the pixels of each class in a mask, those of void last."""
        labels = self.reading.labels
        assert labels is not None and one.mask is not None
        counts, known = np.zeros(IGNORE + 1, np.int64), labels.known()
        for value, pixels in self.values([one.mask]).items():
            if value in known:
                counts[known[value]] += pixels
        return counts[[*range(len(labels.names)), IGNORE]]
