"""Ctrl-C asks for an orderly end; a second one does not wait."""

import os
import signal
import time

import pytest

from stillroom import signals
from stillroom.errors import Stopped
from stillroom.signals import raise_if_stopped, stop_on_signals


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


def test_the_first_ctrl_c_is_noted_and_the_second_interrupts(monkeypatch, capfd):
    monkeypatch.setattr(signals, "_SAME_S", 0.0)
    with pytest.raises(KeyboardInterrupt), stop_on_signals(signal.SIGINT) as stop:
        interrupt()
        assert stop.is_set()
        with pytest.raises(Stopped, match="half of it"):
            raise_if_stopped(stop, "half of it is done")
        interrupt()
    assert capfd.readouterr().err.count("Ctrl-C again does not wait") == 1


def test_a_ctrl_c_that_a_launcher_passes_on_is_the_same_one():
    with stop_on_signals(signal.SIGINT) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        interrupt()
        interrupt()
        assert stop.is_set()


def test_where_nothing_is_to_be_saved_ctrl_c_interrupts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    try:
        with pytest.raises(KeyboardInterrupt), stop_on_signals():
            interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
