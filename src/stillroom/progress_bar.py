"""How far a command has come: one bar in a terminal, elsewhere (a job's log) a line every 30 s."""

import sys
from typing import Any

from tqdm import tqdm

_LINE = "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_EVERY_S = 30.0


def progress_bar(*rows: Any, **options: Any) -> tqdm:
    """Return what `tqdm(*rows, **options)` does, as fits where standard error goes."""
    if sys.stderr.isatty():
        return tqdm(*rows, **options)
    # The delay: no line before the first row.
    lines = {
        "bar_format": _LINE,
        "mininterval": _EVERY_S,
        "miniters": 1,
        "delay": 1e-9,
        "leave": False,
    }
    return _Lines(*rows, **lines, **options)


class _Lines(tqdm):
    """Lines instead of a bar that is drawn again."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def clear(self, *_: Any, **__: Any) -> None:
        """There is nothing to clear."""

    def close(self) -> None:
        """End with a line that says how far it came."""
        self.refresh()
        super().close()
