"""A micro-batch that does not fit is answered with the one that does, tried on the device."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stillroom.training.loop as loop
from stillroom.errors import UserError
from stillroom.students.distiller import Distiller

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


def hold_at_most(monkeypatch, rows: int) -> list[int]:
    """Let the network run out of memory above so many rows; return what it was given."""
    forward, seen = Distiller.forward, []

    def limited(distiller: Distiller, image: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(len(image))
        if len(image) > rows and distiller.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(distiller, image)

    monkeypatch.setattr(Distiller, "forward", limited)
    return seen


@pytest.mark.parametrize("fits", [2, 1])
def test_the_micro_batch_that_is_named_was_tried_and_works(tiny_recipe, monkeypatch, fits):
    seen = hold_at_most(monkeypatch, fits)
    recipe = replace(tiny_recipe, micro_batch=8, epochs=1)
    with pytest.raises(UserError, match=r"--micro-batch 8: CUDA out of memory") as refused:
        loop.train(recipe)
    assert f"--micro-batch {fits} (tried just now: it fits)" in str(refused.value)
    assert seen == [8, 4, *([2] if fits == 1 else []), *[fits] * (8 // fits)]
    where = replace(recipe.run, overwrite=True)
    assert (loop.train(replace(recipe, micro_batch=fits, run=where)) / "receipt.json").exists()


def test_where_none_fits_that_is_said(tiny_recipe, monkeypatch):
    hold_at_most(monkeypatch, 0)
    with pytest.raises(UserError, match="no smaller micro-batch of --batch 8 fits either"):
        loop.train(tiny_recipe)
    assert not list((Path(tiny_recipe.run.out) / "tiny" / "checkpoints").iterdir())


def test_any_other_error_stays_what_it_is(tiny_recipe, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Distiller, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        loop.train(tiny_recipe)
