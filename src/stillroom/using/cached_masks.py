"""What a run's teacher made of each picture, as masks, from the cache that the run read; no teacher
runs.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from stillroom.cache.find import find_caches
from stillroom.cache.folder import Cache
from stillroom.jsonfile import read_json
from stillroom.metrics import num_classes, predict
from stillroom.pictures.dataset import PictureSet
from stillroom.types import ShardId, View
from stillroom.using.student import Trained
from stillroom.using.student_rows import places


class CachedMasks:
    """Masks of one target of logits, of those rows of a split that were looked at whole, all
    pictures being of `size` (h, w); `names` are theirs.
    """

    def __init__(self, cache: Cache, target: str, split: str, size: tuple[int, int]) -> None:
        self.cache, self.target = cache, target
        self._parts = [p.name for p in cache.parts if p.name.partition(".")[0] == target]
        self._open = functools.cache(cache.reader)
        self._places: dict[str, tuple[ShardId, int]] = {}
        whole = View(x0=0, y0=0, x1=size[1], y1=size[0])
        for shard in cache.shard_ids(split):
            for i, row in enumerate(self._open(shard).rows):
                if row.view == whole:
                    self._places[row.name] = shard, i
        self.names = self._places.keys()

    def mask(self, name: str) -> Int[Tensor, "h w"]:
        """Return the teacher's classes of a picture; raises DamageError."""
        shard, i = self._places[name]
        read = self._open(shard).read(i, self._parts)
        parts = {name: torch.from_numpy(value)[None] for name, value in read.items()}
        return predict(self.cache.decode(parts)[self.target])[0]


def cache_read(run: Path) -> dict[str, Any] | None:
    """Return what a run's receipt says of the cache that it read, None where it read none."""
    receipt = run / "receipt.json"
    return read_json(receipt).get("cache") if receipt.is_file() else None


def find_masks(
    trained: Trained, pictures: PictureSet, split: str, root: Path
) -> tuple[CachedMasks | None, str]:
    """Return the masks of a run's teacher, or None and why there are none.

    `root` is the folder of caches, or the cache itself.
    """
    read = cache_read(trained.run)
    if read is None:
        return None, "this run read no cache"
    caches = [c for c in find_caches(root) if c.fingerprint == read["fingerprint"]]
    if not caches:
        return None, f"the cache {read['name']} is not in {root} (--cache FOLDER)"
    cache = caches[0]
    if cache.identity["pictures"]["digest"] != pictures.digest:
        return None, f"the cache {read['name']} is one of other pictures"
    lacking = f"the cache {read['name']} does not hold every row of {split!r}"
    if set(cache.missing()) & set(cache.shard_ids(split)):
        return None, lacking
    for name, spec in cache.specs.items():
        is_map = spec.kind == "logits" and spec.shape[1:] == (trained.regions or trained.size)
        if is_map and num_classes(spec.shape[0]) == trained.num_classes:
            assert pictures.geometry is not None
            masks = CachedMasks(cache, name, split, pictures.geometry)
            wanted = {row.name for _, row in places(trained, pictures, split)}
            return (masks, "") if wanted == set(masks.names) else (None, lacking)
    return None, f"the cache {read['name']} holds no map of the classes at the student's size"
