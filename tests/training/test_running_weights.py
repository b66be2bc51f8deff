"""Running class weights: by hand, over steps, through a checkpoint."""

import json
import math

import pytest
import torch

from stillroom.errors import UserError
from stillroom.losses import CrossEntropy, RunningCrossEntropy
from stillroom.training.running_weights import RunningWeights
from stillroom.types import IGNORE, Batch

CPU = torch.device("cpu")
FOREGROUND = RunningCrossEntropy(output="bg_fg", relabel=(0, 1, 1), boost=(1.0, 1.2))
WHOSE = RunningCrossEntropy(
    output="target", relabel=(IGNORE, 0, 1), boost=(1.0, 1.2), begin_at_one=False
)


def batch_of(pixels: list[int]) -> Batch:
    """Background, target, other, void: so many pixels each."""
    labels = [label for label, n in zip((0, 1, 2, IGNORE), pixels, strict=True) for _ in range(n)]
    mask = torch.tensor(labels).view(1, 1, -1)
    inside = torch.ones_like(mask, dtype=torch.bool)
    return Batch(keys=("a",), image=torch.zeros(1, 3, *mask.shape[1:]), mask=mask, inside=inside)


def steps(*batches: Batch) -> RunningWeights:
    running = RunningWeights((CrossEntropy(), FOREGROUND, WHOSE), CPU)
    for batch in batches:
        running.follow(running.pixels(batch))
        running.give(batch)
    return running


def test_weights_are_the_moving_average_of_shares_worked_by_hand():
    running = steps(batch_of([6, 1, 3, 5]))
    # background 10 / (2 * 6), foreground 1.2 * 10 / (2 * 4)
    assert running.values["bg_fg"].tolist() == pytest.approx([0.9 + 0.1 * 5 / 6, 0.9 + 0.15])
    # of the foreground's four: target 4 / (2 * 1), other 1.2 * 4 / (2 * 3); begins there
    assert running.values["target"].tolist() == pytest.approx([2.0, 0.8])
    running = steps(batch_of([6, 1, 3, 5]), batch_of([2, 1, 1, 0]))
    assert running.values["target"].tolist() == pytest.approx([0.9 * 2 + 0.1, 0.9 * 0.8 + 0.12])


def test_a_steps_weights_are_bounded_and_a_missing_class_keeps_its_own():
    running = steps(batch_of([99, 1, 0, 0]))
    assert running.values["bg_fg"].tolist() == pytest.approx([0.9 + 0.1 * 100 / 198, 0.9 + 0.3])
    target = running.values["target"].tolist()
    assert target[0] == 0.5 and math.isnan(target[1])
    running = steps(batch_of([1, 0, 0, 0]))
    assert running.values["bg_fg"].tolist()[1] == 1.0
    assert all(map(math.isnan, running.values["target"].tolist()))


def test_two_micro_batches_are_one():
    one, two = batch_of([6, 1, 3, 5]), batch_of([2, 1, 1, 0])
    running = RunningWeights((FOREGROUND,), CPU)
    pixels = zip(running.pixels(one), running.pixels(two), strict=True)
    running.follow([a + b for a, b in pixels])
    wanted = steps(batch_of([8, 2, 4, 5])).values["bg_fg"]
    assert torch.equal(running.values["bg_fg"], wanted)
    assert running.give(one).class_weights["bg_fg"] is running.give(two).class_weights["bg_fg"]


def test_the_loss_is_weighted_and_divided_by_pixels():
    batch = batch_of([6, 1, 3, 5])
    weights = steps(batch).values["bg_fg"].tolist()
    logits = torch.zeros(1, 2, 1, 15)
    total = FOREGROUND.total({"bg_fg": logits}, batch, 0.0)
    assert total.item() == pytest.approx(math.log(2) * (6 * weights[0] + 4 * weights[1]))
    assert FOREGROUND.count(batch) == 10


def test_weights_come_back_from_json_even_where_they_have_not_begun():
    running = steps(batch_of([99, 1, 0, 0]))
    again = RunningWeights((FOREGROUND, WHOSE), CPU)
    again.restore(json.loads(json.dumps(running.state())))
    for head, values in running.values.items():
        assert torch.equal(again.values[head].nan_to_num(-1), values.nan_to_num(-1))


def test_weights_of_other_terms_and_two_terms_of_one_head_are_refused():
    with pytest.raises(UserError, match="other terms"):
        RunningWeights((FOREGROUND,), CPU).restore({})
    with pytest.raises(UserError, match="two terms"):
        RunningWeights((FOREGROUND, FOREGROUND), CPU)
