"""A cache as a sequence of rows, for notebooks and scripts: `cache[i]`, `cache.rows(key)`.

Rows are counted over all shards in order. Every read is checked like the trainer's.
"""

import functools
import itertools
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.cache.reader import ShardReader
from stillroom.errors import UserError
from stillroom.types import ShardId, View


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRow:
    """One row as it was kept: who it is, and what the teachers said, decoded."""

    shard: ShardId
    key: str
    region: int | None
    view: View
    targets: dict[str, Float[Tensor, "c y x"]]  # fp32; logits at temperature 1, or features


class CachedRows:
    """Random access to the rows of a cache; `open_shard` gives a shard's reader, `decode` its
    targets.
    """

    def __init__(
        self,
        num_rows: dict[ShardId, int],
        open_shard: Callable[[ShardId], ShardReader],
        decode: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    ) -> None:
        self._shards = tuple(num_rows)
        self._ends = tuple(itertools.accumulate(num_rows.values()))
        self._open = functools.cache(open_shard)
        self._decode = decode

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> CachedRow:
        """Return row i; negative numbers count from the end. Raises IndexError, DamageError."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        i %= len(self)
        number = bisect_right(self._ends, i)
        before = self._ends[number - 1] if number else 0
        return self._read(self._shards[number], i - before)

    def of_key(self, key: str) -> tuple[CachedRow, ...]:
        """Return all rows of a picture, by region and view. Raises UserError where none has it."""
        if key not in self._places:
            near = [known for known in self._places if key in known][:3]
            raise UserError(
                f"no row of this cache has the key {key!r}",
                found=f"{len(self._places)} other keys",
                wanted=" or ".join(near) or "a key of the picture shards, as escaped there",
            )
        return tuple(self._read(shard, i) for shard, i in self._places[key])

    @functools.cached_property
    def _places(self) -> dict[str, list[tuple[ShardId, int]]]:
        """Where each key's rows are; reads every `shard.json` once."""
        places: dict[str, list[tuple[ShardId, int]]] = {}
        for shard in self._shards:
            for i, row in enumerate(self._open(shard).rows):
                places.setdefault(row.key, []).append((shard, i))
        return places

    def _read(self, shard: ShardId, i: int) -> CachedRow:
        reader = self._open(shard)
        row = reader.rows[i]
        parts = {name: torch.from_numpy(value)[None] for name, value in reader.read(i).items()}
        targets = {name: target[0] for name, target in self._decode(parts).items()}
        return CachedRow(
            shard=shard, key=row.key, region=row.region, view=row.view, targets=targets
        )
