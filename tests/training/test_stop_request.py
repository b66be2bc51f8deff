"""Ranks ask one another by time, and all at the same steps."""

import threading

import torch
from accelerate import Accelerator

from stillroom.training.context import TrainContext
from stillroom.training.setup import prepare
from stillroom.training.stop_request import StopRequest


def test_the_next_step_to_ask_at_follows_from_the_mean_pace_and_not_from_the_rank_s_own(
    tiny_recipe, monkeypatch
):
    asked = []

    def both_ranks(_: TrainContext, own: torch.Tensor) -> torch.Tensor:
        assert own[0] == 0
        asked.append(step)
        return torch.tensor([0.0, 2.0])  # of .5 s and 1.5 s, so 5 s are five steps

    context = prepare(tiny_recipe)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(TrainContext, "reduce", both_ranks)
    request = StopRequest(context, threading.Event(), 0)
    for step in range(1, 15):
        assert not request.seen(step, must_ask=step == 8)
    assert asked == [1, 6, 8, 13]
