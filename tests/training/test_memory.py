"""A micro-batch that does not fit is answered with the one that does, tried on the device."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import stillroom.training.loop as loop
from stillroom.errors import UserError
from stillroom.students.distiller import Distiller

pytestmark = pytest.mark.usefixtures("undrawn")


def hold_at_most(monkeypatch, rows: int) -> list[int]:
    """Let the network run out of memory above so many rows; return what it was given."""
    forward, seen = Distiller.forward, []

    def limited(distiller: Distiller, image: torch.Tensor, boxes=None) -> dict[str, torch.Tensor]:
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


def test_memory_that_runs_out_in_a_backward_pass_under_ddp_is_answered_too(
    tiny_recipe, monkeypatch, alone_in_a_group
):
    """Such a failure leaves DDP's reduction half way: no later pass through it works."""

    def full(gradient: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    prepare, forward = loop.prepare, Distiller.forward

    def prepare_ddp(recipe):
        context = prepare(recipe)
        return replace(context, model=DistributedDataParallel(context.distiller))

    def limited(distiller: Distiller, image: torch.Tensor, boxes=None) -> dict[str, torch.Tensor]:
        outputs = forward(distiller, image)
        if len(image) > 2 and outputs["logits"].requires_grad:
            outputs["logits"].register_hook(full)
        return outputs

    monkeypatch.setattr(loop, "prepare", prepare_ddp)
    monkeypatch.setattr(Distiller, "forward", limited)
    with pytest.raises(UserError, match=r"--micro-batch 2 \(tried just now: it fits\)"):
        loop.train(replace(tiny_recipe, micro_batch=8, epochs=1))


@pytest.fixture
def alone_in_a_group(tmp_path) -> Iterator[None]:
    """A process group of this process."""
    where = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_an_error_without_a_word_is_named_by_its_kind(tiny_recipe, monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Distiller, "forward", full)
    with pytest.raises(UserError, match="--micro-batch 4: MemoryError"):
        loop.train(tiny_recipe)


def test_where_there_is_a_checkpoint_nothing_is_thrown_away_without_a_word(
    tiny_recipe, monkeypatch
):
    loop.train(tiny_recipe)
    (Path(tiny_recipe.run.out) / "tiny" / "checkpoints" / "step-000006" / "state.json").unlink()
    hold_at_most(monkeypatch, 2)
    with pytest.raises(UserError, match=r"--run.resume; or begin anew \(what was trained is lost"):
        loop.train(replace(tiny_recipe, run=replace(tiny_recipe.run, resume=True)))
