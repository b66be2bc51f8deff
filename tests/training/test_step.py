"""No split of a step into micro-batches or ranks changes its loss or its gradient."""

import pytest
import torch
from torch import nn

from stillroom.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Dice,
    FeatureCosine,
    FeatureMSE,
    LogitMSE,
    SoftKL,
    Temperature,
)
from stillroom.training.step import (
    labels,
    local_counts,
    loss_factors,
    seed_forward,
    temperatures,
    term_totals,
)
from stillroom.types import Batch

LABEL_TERMS = (CrossEntropy(), BinaryCrossEntropy(weight=0.5), Dice(weight=0.7))
DISTILLED = (
    SoftKL(target="said", weight=0.9, temperature=Temperature(start=3.0, end=1.0, kind="linear")),
    LogitMSE(target="said", weight=0.3),
    FeatureMSE(target="inner", tap="encoder.1", weight=0.4),
    FeatureCosine(target="inner", tap="encoder.1", weight=0.2),
)
TERMS = LABEL_TERMS + DISTILLED


class Net(nn.Module):
    """Without BatchNorm, so that a picture's answer does not depend on its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 3, 1)
        self.projection = nn.Conv2d(5, 4, 1)

    def forward(self, image):
        feature = torch.relu(self.first(image))
        inner = self.projection(nn.functional.avg_pool2d(feature, 2))
        return {"logits": self.head(feature), "encoder.1>inner": inner}


def pictures(void: tuple[int, ...] = (), padded: tuple[int, ...] = (1,)) -> Batch:
    """8 pictures of 8 x 8 px; one labelled in those of `void`, three rows inside in `padded`."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 3, (8, 8, 8), generator=draw)
    inside = torch.ones(8, 8, 8, dtype=torch.bool)
    for i in void:
        mask[i].view(-1)[1:] = 255
    for i in padded:
        inside[i, 3:] = False
    return Batch(
        keys=tuple("abcdefgh"),
        image=torch.rand(8, 3, 8, 8, generator=draw),
        mask=mask,
        inside=inside,
        targets={
            "said": 3 * torch.randn(8, 3, 8, 8, generator=draw),
            "inner": torch.randn(8, 4, 4, 4, generator=draw),
        },
    )


def part(batch: Batch, rows: slice) -> Batch:
    return Batch(
        keys=batch.keys[rows],
        image=batch.image[rows],
        mask=batch.mask[rows],
        inside=batch.inside[rows],
        targets={name: target[rows] for name, target in batch.targets.items()},
    )


def run(terms, batches, world=1):
    """One step; returns the loss, the gradient as one vector, and the counts."""
    torch.manual_seed(0)
    net = Net()
    counts = sum(local_counts(terms, batch) for batch in batches)
    factors = loss_factors([term.weight for term in terms], counts, world)
    loss = torch.zeros(())
    for batch in batches:
        part = (factors * term_totals(terms, net(batch.image), batch, 0.25)).sum()
        part.backward()
        loss += part.detach()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    return loss, gradient, counts


@pytest.mark.parametrize("size", [4, 2, 1])
def test_a_global_batch_in_micro_batches_gives_the_same_loss_and_gradient(size):
    whole = pictures(void=(4, 5, 6, 7))  # the second half is nearly all void
    loss, gradient, counts = run(TERMS, [whole])
    parts = [part(whole, slice(i, i + size)) for i in range(0, 8, size)]
    loss_2, gradient_2, counts_2 = run(TERMS, parts)
    assert torch.equal(counts, counts_2)
    assert torch.allclose(loss, loss_2, rtol=1e-6, atol=0)
    assert (gradient - gradient_2).norm() < 1e-6 * gradient.norm()


def test_a_mean_per_micro_batch_would_have_been_noticed():
    whole = pictures(void=(4, 5, 6, 7))
    _, gradient, _ = run(TERMS, [whole])
    halves = [run(TERMS, [part(whole, slice(i, i + 4))])[1] for i in (0, 4)]
    assert (gradient - sum(halves) / 2).norm() > 0.05 * gradient.norm()


def test_terms_without_a_valid_pixel_are_exactly_zero_and_the_others_stay():
    batch = pictures()
    batch.mask.fill_(255)
    loss, gradient, counts = run(TERMS, [batch])
    assert counts[:3].tolist() == [0, 0, 0]
    alone, gradient_alone, _ = run(DISTILLED, [batch])
    assert torch.allclose(loss, alone, rtol=1e-6, atol=0)  # the order of seven numbers and of four
    assert torch.equal(gradient, gradient_alone)


def test_a_step_in_which_nothing_counts_moves_nothing():
    batch = pictures()
    batch.inside.fill_(False)
    loss, gradient, counts = run(TERMS, [batch])
    assert counts.tolist() == [0] * len(TERMS)
    assert loss == 0
    assert gradient.numel() > 0
    assert not gradient.any()


def test_padding_and_void_move_nothing():
    one, two = pictures(void=(2,)), pictures(void=(2,))
    two.mask[1, 3:] = 1  # padding: neither its labels nor what was said of it count
    two.targets["said"][1, :, 3:] = 50.0
    two.targets["inner"][1, :, 2:] = 50.0
    assert torch.equal(run(TERMS, [one])[1], run(TERMS, [two])[1])


def test_the_factor_world_undoes_the_mean_over_ranks():
    one, two = run(TERMS, [pictures()], world=1), run(TERMS, [pictures()], world=2)
    assert torch.allclose(2 * one[1], two[1], rtol=1e-6)
    assert 2 * one[0] == two[0]


def test_what_is_dropped_depends_on_seed_step_and_micro_batch_only():
    def dropped(seed, step, micro):
        torch.rand(seed + step)  # whatever was drawn before
        seed_forward(seed, step, micro)
        return nn.functional.dropout(torch.ones(64)).tolist()

    assert dropped(0, 3, 1) == dropped(0, 3, 1)
    known = [dropped(*case) for case in ((0, 3, 1), (0, 3, 0), (0, 4, 1), (1, 3, 1))]
    assert len({tuple(mask) for mask in known}) == 4


def test_terms_of_one_kind_are_numbered_in_the_log():
    assert labels((Dice(), CrossEntropy(), Dice())) == ("dice_0", "ce", "dice_1")


def test_the_log_has_the_temperature_of_every_term_that_has_one():
    terms = (*DISTILLED[:2], SoftKL(target="said"))
    assert temperatures(terms, 0.25) == {"temperature_kl_0": 2.5, "temperature_kl_1": 1.0}
    assert temperatures(LABEL_TERMS, 0.5) == {}
