"""Which row comes when: arithmetic on (seed, position), with O(1) memory and random access.

The stream of rows is an endless chain of passes; each pass is a keyed permutation of all rows. A
position in it is all the state there is, so a resume at any world size, with any number of workers,
continues exactly. An epoch is a number of steps and need not end where a pass does.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from stillroom.device_memory import smaller_micro_batches
from stillroom.errors import UserError
from stillroom.hashing import keyed_hash

_ROUNDS = 6
_MASK = (1 << 64) - 1


def permuted(index: int, size: int, key: int) -> int:
    """Return where a keyed permutation of `range(size)` sends `index`.

    A balanced Feistel network over the smallest even number of bits that holds `size`, walked until
    it lands inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    assert 0 <= index < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        index = _feistel(index, half, key)
        if index < size:
            return index


def _feistel(value: int, half: int, key: int) -> int:
    low = (1 << half) - 1
    left, right = value >> half, value & low
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mix(right ^ key ^ _mix(number + 1)) & low)
    return left << half | right


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


@runtime_checkable
class RowOrder(Protocol):
    """An endless stream of row numbers: see `Order`."""

    def at(self, position: int) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The endless stream of row numbers of a training run."""

    rows: int
    seed: int

    def __post_init__(self) -> None:
        assert self.rows > 0

    def at(self, position: int) -> tuple[int, int]:
        """Return (pass, row number) at a position of the stream; all integers, no state."""
        number, index = divmod(position, self.rows)
        return number, permuted(index, self.rows, keyed_hash("order", self.seed, number))


class _Pass(NamedTuple):
    """How one pass goes through the shards: in which order, and how many rows lie before each and
    before each window; both with the end.
    """

    shards: np.ndarray
    ends: np.ndarray
    windows: np.ndarray


class WindowOrder:
    """The endless stream of row numbers where shards are taken `window` at a time, in an order that
    is drawn for each pass, and rows are permuted within a window. `shard_rows` are those of each
    shard, whose rows are numbered one after another.
    """

    def __init__(self, *, shard_rows: tuple[int, ...], window: int, seed: int) -> None:
        assert window > 0 and sum(shard_rows) > 0
        self._window, self._seed = window, seed
        self._rows = np.array(shard_rows, np.int64)
        self._starts = np.concatenate(([0], np.cumsum(self._rows)))
        self._drawn = lru_cache(maxsize=4)(self._draw)  # O(shards) a pass

    def at(self, position: int) -> tuple[int, int]:
        """Return (pass, row number) at a position of the stream."""
        number, drawn, window, index = self._find(position)
        start, end = drawn.windows[window : window + 2].tolist()
        key = keyed_hash("window", self._seed, number, window)
        row = start + permuted(index - start, end - start, key)
        place = int(np.searchsorted(drawn.ends, row, side="right")) - 1
        return number, int(self._starts[drawn.shards[place]] + row - drawn.ends[place])

    def shards_at(self, position: int) -> tuple[tuple[int, int], tuple[int, ...]]:
        """Return (pass, window) at a position, and the numbers of that window's shards."""
        number, drawn, window, _ = self._find(position)
        first = window * self._window
        return (number, window), tuple(drawn.shards[first : first + self._window].tolist())

    def next_window(self, position: int) -> int:
        """Return the position where the next window begins."""
        _, drawn, window, index = self._find(position)
        return position - index + int(drawn.windows[window + 1])

    def _find(self, position: int) -> tuple[int, _Pass, int, int]:
        number, index = divmod(position, int(self._starts[-1]))
        drawn = self._drawn(number)
        window = int(np.searchsorted(drawn.windows, index, side="right")) - 1
        return number, drawn, window, index

    def _draw(self, number: int) -> _Pass:
        count, key = len(self._rows), keyed_hash("shards", self._seed, number)
        shards = np.array([permuted(i, count, key) for i in range(count)])
        ends = np.concatenate(([0], np.cumsum(self._rows[shards])))
        return _Pass(shards, ends, np.append(ends[: -1 : self._window], ends[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchSchedule:
    """How the global batch of each step is cut into micro-batches and dealt to ranks.

    Micro-batch m of a step is the same rows at every world size; rank r runs the micro-batches r, r
    + world, ...
    """

    batch: int
    micro_batch: int
    rank: int
    world: int

    @property
    def num_micro_batches(self) -> int:
        """How many micro-batches a step has, over all ranks."""
        return self.batch // self.micro_batch

    def micro_batches(self) -> tuple[int, ...]:
        """Return the numbers of this rank's micro-batches within a step."""
        return tuple(range(self.rank, self.num_micro_batches, self.world))

    def positions(self, step: int, micro: int) -> range:
        """Return the stream positions of one micro-batch of one step."""
        start = step * self.batch + micro * self.micro_batch
        return range(start, start + self.micro_batch)


def make_schedule(batch: int, micro_batch: int, rank: int, world: int) -> MicroBatchSchedule:
    """Return one process's schedule; raises UserError, with flags that fit, where the micro-batches
    of a step cannot be dealt evenly to `world` processes.
    """
    num_micros = batch // micro_batch
    if num_micros % world:
        legal = [n for n in range(1, num_micros + 1) if num_micros % n == 0]
        larger = -(-batch // (micro_batch * world)) * micro_batch * world
        smaller = smaller_micro_batches(batch, micro_batch + 1, world)[:1]
        same_batch = "".join(f"--micro-batch {size}, or " for size in smaller)
        raise UserError(
            "the micro-batches of a step cannot be dealt evenly to the processes",
            found=f"{world} processes, --batch {batch} --micro-batch {micro_batch}",
            wanted=f"{', '.join(map(str, legal))} processes, or another --batch or --micro-batch",
            fix=f"{same_batch}--batch {larger} (with a larger --optimizer.lr)",
        )
    return MicroBatchSchedule(batch=batch, micro_batch=micro_batch, rank=rank, world=world)
