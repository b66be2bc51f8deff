"""A step holds one decoded micro-batch at a time, and waits for the device nowhere."""

import gc
import weakref
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import stillroom.training.loop as loop
import stillroom.training.stop_request as stop_request
from stillroom.losses import CrossEntropy, Dice, Focal, HeadAgreement, RunningCrossEntropy
from stillroom.training.batches import countable_batch, decoded_batches, to_batch
from stillroom.training.setup import prepare
from stillroom.training.step import local_counts
from stillroom.types import Batch

CPU = torch.device("cpu")
# What reads a number of the device, or makes one of a Python number by a copy that waits.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "equal")


@pytest.fixture
def context(tiny_recipe):
    return prepare(replace(tiny_recipe, batch=8, micro_batch=4))


def test_what_is_counted_needs_no_number_of_pictures_and_targets(context):
    with closing(context.stream(range(1))) as stored:
        for one in stored:
            countable = countable_batch(one, CPU, context.cache)
            assert countable.image.is_meta and all(t.is_meta for t in countable.targets.values())
            whole = to_batch(one, CPU, context.cache)
            assert {n: t.shape for n, t in countable.targets.items()} == {
                n: t.shape for n, t in whole.targets.items()
            }
            counts = [local_counts(context.recipe.terms, batch) for batch in (countable, whole)]
            assert torch.equal(*counts)


def test_no_micro_batch_is_kept_once_the_next_is_decoded(tiny_recipe, monkeypatch):
    seen, alive = [], []

    def watched(*words):
        for batch in decoded_batches(*words):
            gc.collect()
            alive.append(sum(one() is not None for one in seen))
            seen.append(weakref.ref(next(iter(batch.targets.values()))))
            yield batch
            del batch

    monkeypatch.setattr(loop, "decoded_batches", watched)
    recipe = replace(tiny_recipe, epochs=1, batch=12, micro_batch=4)
    loop.train(recipe)
    assert len(seen) == 6 and not any(alive)


class Waits(TorchDispatchMode):
    """Notes the operations for which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        is_masked = name == "index" and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITS or is_masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def paused(self):
        """Notes nothing."""
        before = list(self.found)
        yield
        self.found[:] = before


def waits_of_a_step(recipe, monkeypatch) -> list[str]:
    """The waits of the last of three steps, without the optimiser's own: on CUDA it is fused."""
    waits, ends = Waits(), []
    apply_gradient, make_optimizer = loop.apply_gradient, torch.optim.AdamW.step

    def counted(*words):
        norm = apply_gradient(*words)
        ends.append(len(waits.found))
        return norm

    def unseen(*words, **more):
        with waits.paused():
            return make_optimizer(*words, **more)

    monkeypatch.setattr(stop_request, "_EVERY_S", 1e6)
    monkeypatch.setattr(loop, "apply_gradient", counted)
    monkeypatch.setattr(torch.optim.AdamW, "step", unseen)
    run = replace(recipe.run, log_every=100, evaluate_every=100)
    with waits:
        loop.train(replace(recipe, epochs=1, batch=8, micro_batch=4, run=run))
    return waits.found[ends[1] : ends[2]]


def test_a_step_between_two_lines_of_the_log_waits_for_the_device_nowhere(tiny_recipe, monkeypatch):
    weights = tuple(map(float, range(1, tiny_recipe.student.classes + 1)))
    terms = [
        replace(term, class_weights=weights) if term.label == "ce" else term
        for term in tiny_recipe.terms
    ]
    assert terms != list(tiny_recipe.terms)
    assert not waits_of_a_step(replace(tiny_recipe, terms=tuple(terms)), monkeypatch)


def test_a_term_that_waits_is_seen(tiny_recipe, monkeypatch):
    total = type(tiny_recipe.terms[0]).total

    def waiting(self, *words):
        found = total(self, *words)
        assert float(found.detach()) >= 0
        return found

    monkeypatch.setattr(type(tiny_recipe.terms[0]), "total", waiting)
    assert "_local_scalar_dense" in waits_of_a_step(tiny_recipe, monkeypatch)


@pytest.mark.parametrize("only", [(), (1, 2)])
def test_no_term_of_labels_waits_once_it_has_been_used(only):
    mask = torch.randint(0, 3, (2, 8, 8))
    batch = Batch(
        keys=("a", "b"), image=torch.rand(2, 3, 8, 8), mask=mask, inside=mask >= 0, targets={}
    )
    batch.class_weights = {"head": torch.ones(3, dtype=torch.float64)}
    outputs = {n: torch.rand(2, 3, 8, 8, requires_grad=True) for n in ("logits", "head")}
    terms = (
        CrossEntropy(class_weights=(1.0, 2.0, 3.0), relabel=(0, 2, 1)),
        RunningCrossEntropy(output="head", boost=(1.0, 1.0, 2.0)),
        HeadAgreement(output="head", relabel=(0, 1, 2)),
        Dice(only=only),
        Focal(),
    )
    for waits in (Waits(), Waits()):
        with waits:
            for term in terms:
                term.count(batch)
                term.total(outputs, batch, 0.5).backward()
    assert not waits.found


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_gpu_is_waited_for_only_where_a_line_is_logged(tiny_recipe, monkeypatch, precision):
    apply_gradient, steps = loop.apply_gradient, []

    def watched(*words):
        norm = apply_gradient(*words)
        steps.append(norm)
        torch.cuda.set_sync_debug_mode("error" if len(steps) in (2, 3, 4) else "default")
        return norm

    monkeypatch.setattr(stop_request, "_EVERY_S", 1e6)
    monkeypatch.setattr(loop, "apply_gradient", watched)
    run = replace(tiny_recipe.run, device="cuda", log_every=100, evaluate_every=100)
    recipe = replace(tiny_recipe, precision=precision, epochs=2, batch=8, micro_batch=4, run=run)
    try:
        loop.train(recipe)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 6


@pytest.mark.gpu
def test_a_gpu_holds_the_targets_of_one_micro_batch(tiny_recipe):
    peaks = []
    for num_micros in (1, 4):
        run = replace(tiny_recipe.run, device="cuda", name=f"of-{num_micros}")
        torch.cuda.reset_peak_memory_stats()
        loop.train(replace(tiny_recipe, epochs=1, batch=4 * num_micros, micro_batch=4, run=run))
        peaks.append(torch.cuda.max_memory_reserved())  # copies ahead of the device's work included
    assert peaks[1] < 1.05 * peaks[0]
