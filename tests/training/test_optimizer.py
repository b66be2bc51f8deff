"""The learning rate is arithmetic on the step; what decays is what should."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from stillroom.recipe_optimizer import AdamW
from stillroom.training.optimizer import learning_rate, make_optimizer

CPU = torch.device("cpu")


def test_it_rises_in_a_line_then_falls_as_half_a_cosine():
    config = AdamW(lr=0.4, warmup=0.1, final=0.05)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.4)
    assert rates[-1] == pytest.approx(0.4 * 0.05)
    middle = 0.4 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 30 / 89)))
    assert rates[40] == pytest.approx(middle)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_it_is_the_cosine_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=48, eta_min=0.3 * 0.1)
    config = AdamW(lr=0.3, warmup=0.02, final=0.1)
    for step in range(1, 50):  # step 0 warms up
        assert learning_rate(config, step, 50) == pytest.approx(torchs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        torchs.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_short_runs_have_positive_finite_rates_that_never_pass_the_maximum(steps, warmup):
    config = AdamW(lr=0.1, warmup=warmup)
    for step in range(steps):
        assert 0 < learning_rate(config, step, steps) <= 0.1 * (1 + 1e-12)


def test_biases_and_normalisation_do_not_decay_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    model[2].requires_grad_(False)
    decaying, still = make_optimizer(AdamW(weight_decay=0.3), model, CPU).param_groups
    assert [p is q for p, q in zip(decaying["params"], [model[0].weight], strict=True)] == [True]
    assert {id(p) for p in still["params"]} == {
        id(p) for p in (model[0].bias, model[1].weight, model[1].bias)
    }
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.3, 0.0)
