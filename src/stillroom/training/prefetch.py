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
        self._window: tuple[int, int] | None = None  # (pass, window) that was read last
        self._pool = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def before(self, position: int) -> None:
        """Where a window begins, begin to fetch its shards and those of the next one. What is here
        counts as used now: it was fetched before what the last window read.
        """
        order = self._order
        if not isinstance(order, WindowOrder):
            return
        window, shards = order.shards_at(position)
        if window != self._window:
            self._window = window
            following = order.shards_at(order.next_window(position))[1]
            for shard in (*shards, *following):  # what fails here is told where it is read
                self._pool.submit(self._dataset.fetch, shard)
