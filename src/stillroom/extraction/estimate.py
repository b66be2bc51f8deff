"""How large a cache becomes and how long it takes, said once the first batches have shown it."""

import time
from collections.abc import Callable

_UNITS = (("h", 3600), ("min", 60), ("s", 1))
_BATCHES = 4  # that are measured; the first is left out of the time, since it warms up


class Estimate:
    """Counts what one process makes of `left` rows, which `world` processes share."""

    def __init__(self, left: int, world: int, say: Callable[[str], None]) -> None:
        self._left, self._world, self._say = left, world, say
        self._batches = self._rows = self._bytes = self._first = 0
        self._began = 0.0

    def add(self, rows: int, num_bytes: int) -> None:
        """Count a batch of so many rows and bytes as they are stored; the last that is measured
        says what to expect.
        """
        self._batches += 1
        self._rows, self._bytes = self._rows + rows, self._bytes + num_bytes
        if self._batches == 1:
            self._first, self._began = rows, time.perf_counter()
        if self._batches == _BATCHES and self._rows < self._left:
            seconds = time.perf_counter() - self._began
            self._say(self._text((self._rows - self._first) * self._world / seconds))

    def _text(self, rows_per_s: float) -> str:
        row_mb = self._bytes / self._rows / 1e6
        seconds = self._left / rows_per_s
        unit, length = next(u for u in _UNITS if seconds >= u[1] or u[1] == 1)
        return (
            f"by the first {self._rows} rows: {row_mb:.3g} MB and {1 / rows_per_s:.3g} s"
            f" a row, so {row_mb * self._left:.4g} MB and about {seconds / length:.3g} {unit}"
            f" for {self._left} rows"
        )
