"""fp16 under a gradient scaler: a step that overflows is skipped, counted and named, and moves
nothing. On a CPU, which does all of it but fast.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import stillroom.training.loop as loop
import stillroom.training.setup as setup
import stillroom.training.step as step_sums
from stillroom.errors import FailureError
from stillroom.recipe import Recipe
from stillroom.training.log import read_metrics
from stillroom.training.optimizer import make_optimizer
from stillroom.types import Batch

pytestmark = pytest.mark.usefixtures("undrawn")


FUSED = pytest.mark.parametrize("in_fp16", ["fused"], indirect=True)


@pytest.fixture
def in_fp16(monkeypatch, request) -> Iterator[None]:
    """What Accelerate makes on a GPU; on a CPU it would run fp32 without a word, and we refuse."""
    is_fused = getattr(request, "param", "") == "fused"

    def accelerator(_: Recipe) -> Accelerator:
        made = Accelerator(cpu=True)
        made.state._mixed_precision, made.native_amp = "fp16", True
        made.scaler = torch.amp.GradScaler("cpu", growth_interval=4)
        return made

    def optimizer(config, model, device, *more):
        device = torch.device("cuda") if is_fused else device  # the parameters stay where they are
        return make_optimizer(config, model, device, *more)

    monkeypatch.setattr(setup, "make_accelerator", accelerator)
    monkeypatch.setattr(setup, "make_optimizer", optimizer)
    yield
    Accelerator(cpu=True).state._reset_state()


def run(recipe: Recipe, epochs: int, log_every: int = 1) -> Path:
    """Train; three steps an epoch, one evaluation at the end."""
    where = replace(recipe.run, log_every=log_every, evaluate_every=epochs, keep=99)
    return loop.train(replace(recipe, epochs=epochs, run=where))


def spoil(monkeypatch, at: Callable[[int], bool], factor: float) -> list[int]:
    """Multiply the terms' totals of some steps; return the list of the steps begun."""
    totals, begun, begin = step_sums.term_totals, [], loop.RunningBuffers.begin

    def counting(buffers):
        begun.append(len(begun))
        begin(buffers)

    monkeypatch.setattr(loop.RunningBuffers, "begin", counting)
    monkeypatch.setattr(
        step_sums, "term_totals", lambda *a: totals(*a) * (factor if at(begun[-1]) else 1.0)
    )
    return begun


def train_lines(run: Path) -> list[dict]:
    return [line for line in read_metrics(run) if line["kind"] == "train"]


@pytest.mark.parametrize("in_fp16", ["fused", "unfused"], indirect=True)
def test_skipped_steps_are_logged_with_the_scale_and_left_out_of_the_means(
    in_fp16, tiny_recipe, monkeypatch, capsys
):
    spoil(monkeypatch, lambda step: step in (1, 2), math.inf)
    lines = train_lines(run(tiny_recipe, 2, log_every=3))
    assert [line["skipped_steps"] for line in lines] == [2, 0]
    assert [line["scale"] for line in lines] == [2.0**14, 2.0**14]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert "2 steps skipped (scale 16384)" in capsys.readouterr().out


@FUSED
def test_a_skipped_step_moves_no_weight(in_fp16, tiny_recipe, monkeypatch):
    spoil(monkeypatch, lambda step: step >= 3, math.inf)
    recipe = replace(tiny_recipe, run=replace(tiny_recipe.run, evaluate_every=1))
    folder = loop.train(recipe) / "checkpoints"
    before, after = (load_file(folder / f"step-{n:06d}" / "model.safetensors") for n in (3, 6))
    assert all(torch.equal(before[n], after[n]) for n in before if n.endswith(("weight", "bias")))


@pytest.mark.usefixtures("in_fp16")
def test_an_overflow_in_the_forward_pass_leaves_the_running_buffers_finite(
    tiny_recipe, monkeypatch
):
    decoded_batches, seen = loop.decoded_batches, []

    def spoiled(*words) -> Iterator[Batch]:
        for batch in decoded_batches(*words):
            seen.append(batch)
            if len(seen) == 3:  # the first micro-batch of the second step
                batch.image = batch.image + 1e6  # infinite in fp16
            yield batch

    monkeypatch.setattr(loop, "decoded_batches", spoiled)
    folder = run(tiny_recipe, 1)
    assert [line["skipped_steps"] for line in train_lines(folder)] == [0, 1, 0]
    state = load_file(folder / "checkpoints" / "step-000003" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert {int(n) for name, n in state.items() if name.endswith("tracked")} == {6}


@pytest.mark.parametrize(
    ("in_fp16", "factor", "cause"),
    [
        ("unfused", math.inf, "the terms ce, dice, kl, .* are not finite in the forward pass"),
        ("fused", 1e30, "every term is finite, so gradients overflow in the backward pass"),
    ],
    indirect=["in_fp16"],
)
def test_a_row_of_skipped_steps_ends_the_run_with_its_cause(
    in_fp16, tiny_recipe, monkeypatch, factor, cause
):
    begun = spoil(monkeypatch, lambda step: step > 1, factor)
    with pytest.raises(FailureError, match="fp16 has skipped the last 30 steps") as failed:
        run(tiny_recipe, 99, log_every=4)
    assert begun[-1] + 1 == 32
    failed.match(cause)
    failed.match("loss scale 6.10352e-05")
    failed.match("--precision bf16")
    assert not list((Path(tiny_recipe.run.out) / "tiny" / "checkpoints").iterdir())


@FUSED
def test_a_resume_takes_the_scale_up_again(in_fp16, tiny_recipe, monkeypatch):
    spoil(monkeypatch, lambda step: step in (0, 1), math.inf)
    recipe = replace(tiny_recipe, run=replace(tiny_recipe.run, keep=9))
    folder = loop.train(recipe)
    lines = train_lines(folder)
    assert [line["scale"] for line in lines] == [
        2.0 ** (15, 14, 14, 14, 14, 15)[i] for i in range(6)
    ]
    last = folder / "checkpoints" / "step-000006"
    straight = load_file(last / "model.safetensors")
    (last / "state.json").unlink()
    loop.train(replace(recipe, run=replace(recipe.run, resume=True)))
    resumed = load_file(last / "model.safetensors")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    again = [line["scale"] for line in train_lines(folder)]
    assert again == [line["scale"] for line in lines]
