"""Who the rows of a shard are, as arrays: 28 bytes a row and its key, not 900 of objects."""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
import numpy as np

from stillroom.jsonfile import Crc32c, Declared
from stillroom.types import Key, Row, View

_Number = Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]  # of a view or a region
_Pixels = Annotated[int, msgspec.Meta(ge=-100_000_000, le=100_000_000)]


class RowColumns(Declared, frozen=True):
    """Who each row is; a view is number, x0, y0, x1, y1 in packed pixels, and mirrored; `pixels` is
    the crc32c of what the teachers were shown.
    """

    key: list[Key]
    region: list[_Number | None]
    view: list[tuple[_Number, _Pixels, _Pixels, _Pixels, _Pixels, Literal[0, 1]]]
    pixels: list[Crc32c]


class RowTable:
    """The rows of a shard in order; each is made when it is asked for."""

    def __init__(self, columns: RowColumns) -> None:
        self._keys = np.array(columns.key, np.bytes_)
        regions = [-1 if region is None else region for region in columns.region]
        self._numbers = np.column_stack((regions, columns.view)).astype(np.int32)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, i: int) -> Row:
        region, number, x0, y0, x1, y1, mirrored = self._numbers[i].tolist()
        return Row(
            key=self._keys[i].decode(),
            region=None if region < 0 else region,
            view=View(number=number, x0=x0, y0=y0, x1=x1, y1=y1, mirrored=bool(mirrored)),
        )

    def __iter__(self) -> Iterator[Row]:
        return map(self.__getitem__, range(len(self)))

    def find(self, key: str, region: int | None, view: int) -> int | None:
        """Return the number of a row, None where there is none."""
        wanted = (key.encode(), -1 if region is None else region, view)
        i = bisect_left(range(len(self)), wanted, key=self._order)
        return i if i < len(self) and self._order(i) == wanted else None

    def _order(self, i: int) -> tuple[bytes, int, int]:
        region, view = self._numbers[i, :2].tolist()
        return self._keys[i], region, view


def row_order(row: Row) -> tuple[str, int, int]:
    """Rows are ordered by key, region (None first), view number."""
    return row.key, -1 if row.region is None else row.region, row.view.number


def row_columns(rows: list[Row], pixels: list[int]) -> RowColumns:
    """Return rows, and the crc32c of each one's pixels, as `shard.json` holds them."""
    views = [row.view for row in rows]
    return RowColumns(
        key=[row.key for row in rows],
        region=[row.region for row in rows],
        view=[(v.number, v.x0, v.y0, v.x1, v.y1, 1 if v.mirrored else 0) for v in views],
        pixels=pixels,
    )
