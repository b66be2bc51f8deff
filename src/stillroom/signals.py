"""Being told to stop: both stages finish what is under way and leave nothing half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from stillroom.errors import Stopped


@contextmanager
def stop_on_signals(*more: int) -> Iterator[threading.Event]:
    """Within, SIGTERM, SIGUSR1 and `more` set the event; the caller looks at it where it can
    stop.
    """
    stop = threading.Event()
    on_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGUSR1, *more) if on_main else ()
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def raise_if_stopped(stop: threading.Event, found: str) -> None:
    """Raise Stopped if a signal has asked for it; `found` says how far the work has come."""
    if stop.is_set():
        raise Stopped("told to stop", found=found, fix="the same command goes on from here")
