"""The learning rate is arithmetic on the step; what decays is what should."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from stillroom.errors import UserError
from stillroom.recipe_optimizer import (
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    CosineTail,
    Moment,
    Plateau,
    Schedule,
    StepDecay,
)
from stillroom.training.optimizer import make_optimizer, set_rate

CPU = torch.device("cpu")


def rates(schedule: Schedule, lr: float, steps: int, epoch_steps: int = 1) -> list[float]:
    moments = (Moment(step=s, steps=steps, epoch_steps=epoch_steps) for s in range(steps))
    return [schedule.rate(lr, moment) for moment in moments]


def test_it_rises_in_a_line_then_falls_as_half_a_cosine():
    found = rates(Cosine(warmup=0.1, final=0.05), 0.4, 100)
    assert found[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert found[10] == pytest.approx(0.4)
    assert found[-1] == pytest.approx(0.4 * 0.05)
    middle = 0.4 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 30 / 89)))
    assert found[40] == pytest.approx(middle)
    assert all(a > b for a, b in pairwise(found[10:]))


def torchs(make: Any, lr: float, steps: int, **more: Any) -> list[float]:
    """The rates of a scheduler of torch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, found = make(optimizer, **more), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_it_is_the_cosine_of_torch():
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    wanted = torchs(cosine, 0.3, 49, T_max=48, eta_min=0.3 * 0.1)
    found = rates(Cosine(warmup=0.02, final=0.1), 0.3, 50)
    assert found[1:] == pytest.approx(wanted, rel=1e-6)  # step 0 warms up


def test_the_steps_are_those_of_torch():
    step = torch.optim.lr_scheduler.StepLR
    wanted = torchs(step, 1e-4, 200, step_size=20, gamma=0.01 ** (1 / 9))
    assert rates(StepDecay(), 1e-4, 200) == pytest.approx(wanted)


@pytest.mark.parametrize("epoch_steps", [1, 7])
def test_the_cosine_with_a_tail_has_the_values_of_its_source(epoch_steps):
    found = rates(CosineTail(), 1e-4, 200 * epoch_steps, epoch_steps)[::epoch_steps]
    known = {0: 1e-5, 1: 2e-5, 2: 5e-5, 3: 1e-4, 100: 4.76e-5, 190: 1e-6, 199: 1e-6}
    for epoch, wanted in known.items():
        assert found[epoch] == pytest.approx(wanted, rel=1e-3), epoch
    assert found[189] > found[190]


def test_the_cosine_with_a_tail_warms_up_from_a_floor_and_moves_within_an_epoch():
    found = rates(CosineTail(start=0.0), 1e-4, 40, 4)
    assert found[0] == pytest.approx(1e-6)
    assert all(a < b for a, b in pairwise(found[:5]))
    assert found[36:] == [pytest.approx(1e-6)] * 4


SHORT = [Cosine(warmup=w) for w in (0.0, 0.5, 1.0)] + [
    CosineTail(),
    StepDecay(),
    StepDecay(stages=1),
]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("schedule", [*SHORT, Constant(), Plateau()], ids=str)
def test_short_runs_have_positive_finite_rates_that_never_pass_the_maximum(steps, schedule):
    assert all(0 < rate <= 0.1 * (1 + 1e-12) for rate in rates(schedule, 0.1, steps))


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("final", [0.0, 0.2])
def test_a_plateau_is_that_of_torch(patience, final):
    draw = torch.Generator().manual_seed(patience)
    scores = tuple(torch.randint(0, 12, (60,), generator=draw).double().tolist())
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", factor=0.5, patience=patience, threshold=0, min_lr=0.4 * final, eps=0
    )
    schedule = Plateau(patience=patience, final=final)
    seen = set()
    for i, score in enumerate(scores):
        scheduler.step(score)
        moment = Moment(step=i, steps=60, epoch_steps=1, scores=scores[: i + 1])
        seen.add(rate := schedule.rate(0.4, moment))
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
    assert len(seen) > 2


def test_a_plateau_counts_equal_scores_as_no_improvement_and_forgets_none():
    def rate(*scores: float) -> float:
        return Plateau(patience=1).rate(1.0, Moment(step=0, steps=9, epoch_steps=1, scores=scores))

    assert [rate(), rate(0.5), rate(0.5, 0.5), rate(0.5, 0.5, 0.5)] == [1, 1, 1, 0.5]
    assert rate(0.5, 0.5, 0.5, 0.5) == 0.5 and rate(0.5, 0.5, 0.5, 0.5, 0.4) == 0.25
    assert rate(0.5, 0.5, 0.6, 0.5, 0.7) == 1


@pytest.mark.parametrize(
    ("batch", "limits", "wanted"),
    [
        (2, (1e-4, 1e-4), 1e-4),  # Adam of unet-pytorch: both limits are one
        (2, (5e-4, 1e-1), 1.25e-3),  # its SGD
        (1, (5e-3, 1e-1), 5e-3),
        (64, (5e-4, 2e-2), 2e-2),
        (64, None, 4e-2),
    ],
)
def test_a_rate_meant_for_another_batch_is_scaled_within_its_limits(batch, limits, wanted):
    config = SGD(lr=1e-2, nominal_batch=16, lr_limits=limits)
    config.check()
    assert config.peak(batch) == pytest.approx(wanted)
    assert SGD(lr=1e-2).peak(batch) == 1e-2


def test_biases_and_normalisation_do_not_decay_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    model[2].requires_grad_(False)
    decaying, still = make_optimizer(AdamW(weight_decay=0.3), model, CPU).param_groups
    assert [p is q for p, q in zip(decaying["params"], [model[0].weight], strict=True)] == [True]
    assert {id(p) for p in still["params"]} == {
        id(p) for p in (model[0].bias, model[1].weight, model[1].bias)
    }
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize(
    ("config", "make"),
    [
        (AdamW(lr=0.02), lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=1e-4)),
        (Adam(lr=0.02), lambda p: torch.optim.Adam(p, lr=0.02)),
        (SGD(lr=0.02), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True)),
        (
            SGD(lr=0.02, momentum=0.0, nesterov=False, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, lr=0.02, weight_decay=0.1),
        ),
    ],
    ids=lambda value: getattr(type(value), "__name__", ""),
)
def test_the_optimisers_are_torch_s(config, make):
    found, wanted = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    holder = nn.Module()
    holder.weight = found
    pair = (make_optimizer(config, holder, CPU), make([wanted]))
    for step in range(4):
        for parameter, optimizer in zip((found, wanted), pair, strict=True):
            parameter.grad = torch.arange(6.0).view(3, 2) - step
            optimizer.step()
    assert torch.equal(found, wanted) and not torch.equal(found, torch.ones(3, 2))


def test_slowed_parameters_have_their_share_of_the_rate():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    optimizer = make_optimizer(AdamW(), model, CPU, list(model[0].parameters()), 0.3)
    set_rate(optimizer, 0.5)
    found = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert [found[id(p)] for p in model.parameters()] == pytest.approx([0.15, 0.15, 0.5, 0.5])


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        (SGD(momentum=1.0), "optimizer.momentum"),
        (SGD(momentum=0.0), "optimizer.nesterov"),
        (Adam(lr=-1.0), "optimizer.lr"),
        (AdamW(nominal_batch=0), "optimizer.nominal-batch"),
        (AdamW(nominal_batch=8, lr_limits=(1.0, 0.5)), "optimizer.lr-limits"),
        (AdamW(lr_limits=(0.1, 0.5)), "optimizer.lr-limits"),
        (CosineTail(tail=2.0), "schedule.tail"),
        (StepDecay(stages=0), "schedule.stages"),
        (StepDecay(final=0.0), "schedule.final"),
        (Plateau(factor=1.5), "schedule.factor"),
        (Plateau(patience=-1), "schedule.patience"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_their_flag(config, flag):
    with pytest.raises(UserError, match=f"--{flag}"):
        config.check()
