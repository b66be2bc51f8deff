"""The gradient of a cached step beside that of a step with the teachers in it: equal pictures."""

from dataclasses import replace

import pytest
import torch

from stillroom.codecs import parse_codec
from stillroom.recipe import Augment
from stillroom.training.batches import to_batch
from stillroom.training.context import TrainContext
from stillroom.training.setup import prepare
from stillroom.training.step import local_counts, loss_factors, seed_forward, term_totals
from stillroom.types import Batch, Row, View

INNER = "inner"


def unchanged(recipe):
    """Without the student's own augmentation, which the teacher would see too."""
    return replace(recipe, augment=Augment())


def first_step(context: TrainContext) -> list[Batch]:
    hosts = context.stream(range(1))
    device = context.accelerator.device
    return [to_batch(next(hosts), device, context.cache) for _ in range(2)]


def online(context: TrainContext, batch: Batch) -> Batch:
    """The same micro-batch with what the teacher says now, in fp32."""
    (config,) = context.recipe.teachers
    return replace(batch, targets=config.build("cpu")(batch.image, rows=()))


def gradient(
    context: TrainContext, batches: list[Batch], names: tuple[str, ...] = ()
) -> torch.Tensor:
    """Of one step's loss, all weights in a row; `names` are labels of terms, none = all."""
    terms = [t for t in context.recipe.terms if not names or t.label in names]
    distiller = context.distiller.train()
    distiller.zero_grad()
    factors = loss_factors(
        [t.weight for t in terms], sum(local_counts(terms, batch) for batch in batches), 1
    )
    for micro, batch in enumerate(batches):
        seed_forward(0, 0, micro)
        outputs = distiller(batch.image)
        (factors * term_totals(terms, outputs, batch, 0.0)).sum().backward()
    found = [p.grad.flatten() for p in distiller.parameters() if p.grad is not None]
    return torch.cat(found).double()


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_a_step_from_the_cache_has_the_gradient_of_a_step_with_the_teacher_in_it(tiny_recipe):
    context = prepare(unchanged(tiny_recipe))
    batches = first_step(context)

    cached = gradient(context, batches)
    wanted = gradient(context, [online(context, batch) for batch in batches])

    assert 0 < off(cached, wanted) < 1e-3


def kept(batches: list[Batch], text: str, draw: int) -> list[Batch]:
    """Micro-batches whose inner target went through a codec; each draw has its own noise."""
    codec = parse_codec(text)
    fitted = codec.fit([batch.targets[INNER] for batch in batches])
    found = []
    for batch in batches:
        rows = [Row(key=f"{key}/{draw}", view=View(x0=0, y0=0, x1=48, y1=32)) for key in batch.keys]
        decoded = codec.decode(codec.encode(batch.targets[INNER], rows, fitted), fitted)
        found.append(replace(batch, targets=batch.targets | {INNER: decoded}))
    return found


@pytest.fixture
def exact(tiny_recipe) -> tuple[TrainContext, list[Batch], torch.Tensor]:
    context = prepare(unchanged(tiny_recipe))
    batches = [online(context, batch) for batch in first_step(context)]
    return context, batches, gradient(context, batches, ("feature_mse",))


def test_the_mean_gradient_of_stochastic_draws_converges_to_the_exact_one(exact):
    context, batches, wanted = exact
    draws = [
        gradient(context, kept(batches, "stochastic:1", draw), ("feature_mse",))
        for draw in range(32)
    ]

    single = torch.tensor([off(draw, wanted) for draw in draws]).mean()
    mean = off(torch.stack(draws).mean(0), wanted)

    assert mean / single == pytest.approx(32**-0.5, rel=0.4)  # noise; a bias would stay


def test_rounding_to_the_nearest_step_leaves_a_bias_that_no_number_of_draws_removes(
    exact, monkeypatch
):
    context, batches, wanted = exact
    noisy = off(gradient(context, kept(batches, "stochastic:1", 0), ("feature_mse",)), wanted)
    half = lambda seeds, count, device: torch.full((len(seeds), count), 0.5)  # noqa: E731
    monkeypatch.setattr("stillroom.codecs.stochastic.uniform", half)

    nearest = gradient(context, kept(batches, "stochastic:1", 0), ("feature_mse",))

    assert torch.equal(
        nearest, gradient(context, kept(batches, "stochastic:1", 1), ("feature_mse",))
    )
    assert off(nearest, wanted) > noisy / 4
