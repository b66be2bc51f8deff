"""Brings the shards of a store here while those of the window before are read."""

from concurrent.futures import ThreadPoolExecutor

from stillroom.training.order import RowOrder, WindowOrder
from stillroom.training.stream import RowDataset

_FETCHES = 4  # at once; each asks for several blocks of a file at once


class Prefetch:
    """A context manager that is told which position is read next; of a uniform order nothing can
    be fetched before it is read.
    """

    def __init__(self, dataset: RowDataset, order: RowOrder) -> None:
        self._dataset, self._order = dataset, order
        self._under_way: set[tuple[int, int]] = set()
        self._pool = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def before(self, position: int) -> None:
        """Begin to fetch the shards of the window at a position, and those of the next one."""
        order = self._order
        if not isinstance(order, WindowOrder):
            return
        for start in (position, order.next_window(position)):
            window, shards = order.shards_at(start)
            if window not in self._under_way:
                self._under_way.add(window)
                for shard in shards:  # what fails here fails again, and is told, where it is read
                    self._pool.submit(self._dataset.fetch, shard)
