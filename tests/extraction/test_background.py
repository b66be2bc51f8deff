"""A call in the background is waited for, but by nobody who asked twice to stop."""

import signal
import threading
import time

import pytest

from stillroom.extraction.background import Background


def test_an_interrupt_while_the_last_call_is_waited_for_waits_no_longer():
    held, background = threading.Event(), Background()
    here = threading.get_ident()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what began us may ignore it
    threading.Timer(0.2, signal.pthread_kill, [here, signal.SIGINT]).start()

    def publish() -> None:
        held.wait(20)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), background:
        background.begin(publish)
    signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 5
    held.set()
