"""The rows of a split by number: what a run counts and shuffles, without a list of them.

Only where some pictures are left out every index is read once, and where regions of pictures are
rows every picture's json too (`PictureShard.num_boxes`); 8 bytes a row are kept then. Otherwise
sums over shards are enough.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from stillroom.pictures.dataset import PictureSet, PictureShard
from stillroom.pictures.rows import row_at
from stillroom.pictures.views import ViewSource
from stillroom.types import Row, ShardId


class Places:
    """View 0 of each picture of a split, or of each region of one, in order; `is_wanted(shard, i)`
    says which pictures count, None: all do.
    """

    def __init__(
        self,
        pictures: PictureSet,
        split: str,
        views: ViewSource,
        *,
        regions: bool = False,
        is_wanted: Callable[[PictureShard, int], bool] | None = None,
    ) -> None:
        self._pictures, self._views, self._regions = pictures, views, regions
        infos = [info for info in pictures.shards if info.split == split]
        self._shards = [info.id for info in infos]
        self._wanted: list[Any] | None = None  # of each shard (n 2): picture, region or -1
        counts = [info.rows for info in infos]
        if regions or is_wanted is not None:
            self._wanted = [self._scan(pictures.open(shard), is_wanted) for shard in self._shards]
            counts = [len(table) for table in self._wanted]
        self._ends = np.cumsum(counts, dtype=np.int64)

    def _scan(
        self, shard: PictureShard, is_wanted: Callable[[PictureShard, int], bool] | None
    ) -> Any:
        found = [
            (i, region)
            for i in range(len(shard))
            if is_wanted is None or is_wanted(shard, i)
            for region in (range(shard.num_boxes[i]) if self._regions else (-1,))
        ]
        return np.array(found, np.int32).reshape(-1, 2)

    @property
    def shards(self) -> tuple[tuple[ShardId, int], ...]:
        """The shards of the split, and how many of these places each has."""
        counts = np.diff(self._ends, prepend=0).tolist()
        return tuple(zip(self._shards, counts, strict=True))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, place: int) -> tuple[ShardId, Row]:
        """Return a row and its shard, which is opened; raises DamageError."""
        shard, i, region = self.at(place)
        return shard, row_at(self._pictures.open(shard), i, region, self._views, 0)

    def at(self, place: int) -> tuple[ShardId, int, int | None]:
        """Return the shard, the number of the picture in it, and the region; opens nothing."""
        number = int(np.searchsorted(self._ends, place, side="right"))
        i = place - (int(self._ends[number - 1]) if number else 0)
        if self._wanted is None:
            return self._shards[number], i, None
        picture, region = self._wanted[number][i].tolist()
        return self._shards[number], picture, None if region < 0 else region
