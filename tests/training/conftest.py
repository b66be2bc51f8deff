"""Runs of tests draw no curves and no grids: that is half of their time, and tested elsewhere."""

import pytest


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Leave out the drawings of an evaluation."""
    import stillroom.training.validate as validate

    monkeypatch.setattr(validate, "draw_curves", lambda *_: None)
    monkeypatch.setattr(validate, "draw_grid", lambda *_: None)
