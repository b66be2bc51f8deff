"""Being told to stop: both stages finish what is under way and leave nothing half done."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from stillroom.errors import Stopped

_SAME_S = 1.0  # within which another SIGINT is the same Ctrl-C, passed on by a launcher
_SAID = b"\nstopping: what is under way is saved first (Ctrl-C again does not wait)\n"


@contextmanager
def stop_on_signals(*more: int) -> Iterator[threading.Event]:
    """Within, SIGTERM, SIGUSR1 and `more` set the event; the caller looks at it where it can
    stop. A second SIGINT raises KeyboardInterrupt at once.
    """
    stop, interrupts = threading.Event(), []

    def note(number: int, _: object) -> None:
        stop.set()
        if number == signal.SIGINT:
            now = time.monotonic()
            if interrupts and now > interrupts[0] + _SAME_S:
                raise KeyboardInterrupt
            if not interrupts and os.environ.get("RANK", "0") == "0":
                os.write(2, _SAID)  # print may be what was interrupted
            interrupts.append(now)

    on_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGUSR1, *more) if on_main else ()
    before = [signal.signal(number, note) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def raise_if_stopped(stop: threading.Event, found: str) -> None:
    """Raise Stopped if a signal has asked for it; `found` says how far the work has come."""
    if stop.is_set():
        raise Stopped("told to stop", found=found, fix="the same command goes on from here")
