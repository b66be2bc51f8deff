"""Other preprocessings are compared fairly and in pairs."""

import pytest
import torch
from torch.nn import functional

from stillroom.extraction.preprocessing import (
    Comparison,
    Scores,
    at_least,
    calibrated,
    compare,
    describe,
    other_preprocessings,
)
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise

ZERO, ONE = (0.0,) * 3, (1.0,) * 3


def scores(logits, labels) -> Scores:
    outputs = logits.argmax(1)
    counts = [
        torch.bincount((2 * y + s)[y != 255], minlength=4).view(2, 2)
        for s, y in zip(outputs, labels, strict=True)
    ]
    return Scores(torch.stack(counts), logits, labels)


@pytest.fixture
def labels():
    labels = torch.randint(0, 2, (40, 50), generator=torch.Generator().manual_seed(0))
    labels[:, :5] = 255
    return labels


def answers(labels, noise, seed=1):
    """Noisy log-odds of the labels, as two channels."""
    draw = torch.randn(labels.shape, generator=torch.Generator().manual_seed(seed))
    odds = 2.0 * (labels == 1) - 1 + noise * draw
    return torch.stack([torch.zeros_like(odds), odds], 1)


def test_calibration_takes_the_best_scale_and_biases(labels):
    logits = answers(labels, 1.0)
    found = calibrated(scores(logits, labels)).mean()
    best = min(
        functional.cross_entropy(
            logits * scale + torch.tensor([[0.0], [bias]]), labels, ignore_index=255
        )
        for scale in torch.linspace(0.5, 4, 30)
        for bias in (-0.2, -0.1, 0.0, 0.1, 0.2)
    )
    assert found == pytest.approx(float(best), abs=2e-3)


def test_an_answer_that_is_the_same_everywhere_is_the_classes_shares(labels):
    found = calibrated(scores(torch.full((40, 2, 50), 3.0), labels))
    share = (labels == 1).sum() / (labels != 255).sum()
    entropy = -share * share.log() - (1 - share) * (1 - share).log()
    assert found.nanmean() == pytest.approx(float(entropy), abs=1e-3)


@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_confidence_alone_decides_nothing(labels, scale):
    logits = answers(labels, 1.0)
    before = calibrated(scores(logits, labels))
    assert torch.allclose(before, calibrated(scores(logits * scale + 0.1, labels)), atol=1e-3)


def test_answers_that_mistake_the_classes_are_not_turned_round(labels):
    assert calibrated(scores(-answers(labels, 0.5), labels)).mean() > 0.69


def test_the_better_of_two_preprocessings_is_told(labels):
    good, bad = (scores(answers(labels, n, s), labels) for n, s in ((0.6, 1), (1.0, 2)))
    assert compare(bad, good).is_better and not compare(good, bad).is_better
    assert not compare(good, good).is_better


@pytest.mark.parametrize(
    ("gained", "wins", "gain", "is_better"),
    [
        (0.011, 51, 0.0, True),  # the margin, on most pictures
        (0.011, 50, 0.0, False),
        (0.009, 70, 0.06, True),  # less, and on more pictures than luck explains
        (0.009, 60, 0.06, False),
        (0.009, 70, 0.04, False),
        (-0.001, 90, 0.5, False),
    ],
)
def test_better_is_a_margin_or_more_pictures_than_luck_explains(gained, wins, gain, is_better):
    found = Comparison(
        miou=0.8 + gained, declared_miou=0.8, wins=wins, num_pictures=100, gain=gain, loss=0.1
    )
    assert found.is_better is is_better


@pytest.mark.parametrize(("gained", "is_better"), [(0.05, False), (0.2, True)])
def test_of_few_pictures_a_small_margin_says_nothing(gained, is_better):
    found = Comparison(
        miou=0.7 + gained, declared_miou=0.7, wins=4, num_pictures=4, gain=0.3, loss=0.1
    )
    assert found.is_better is is_better


def test_pictures_without_labels_count_for_nobody(labels):
    labels[:10] = 255
    one, two = scores(answers(labels, 1.0), labels), scores(answers(labels, 0.5, 2), labels)
    assert compare(one, two).num_pictures == 30
    labels[:] = 255
    assert compare(one, two).num_pictures == 0 and not compare(one, two).is_better


@pytest.mark.parametrize(("wins", "tosses", "wanted"), [(0, 5, 1.0), (5, 5, 1 / 32), (1, 2, 0.75)])
def test_the_chance_of_so_many_heads(wins, tosses, wanted):
    assert at_least(wins, tosses) == wanted


def test_one_change_at_a_time_or_both():
    preprocessing = Normalise(ZERO, ONE)
    single = {"RGB in 0..255", "RGB in [-1, 1]", "RGB with ImageNet mean and std", "BGR in [0, 1]"}
    assert set(other_preprocessings(preprocessing)) == single
    both = {"BGR in 0..255", "BGR in [-1, 1]", "BGR with ImageNet mean and std"}
    assert set(other_preprocessings(preprocessing, both=True)) == single | both


def test_means_stay_with_their_colours_when_the_order_changes():
    preprocessing = other_preprocessings(Normalise(IMAGENET_MEAN, IMAGENET_STD))
    turned = preprocessing["BGR with ImageNet mean and std"]
    assert turned.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN[::-1])
    image = torch.rand(1, 3, 2, 2)
    straight = Normalise(IMAGENET_MEAN, IMAGENET_STD)(image)
    assert torch.allclose(turned(image), straight.flip(1), atol=1e-6)
    back = other_preprocessings(turned)
    assert "RGB with ImageNet mean and std" in back and "BGR with ImageNet mean and std" not in back


def test_a_normalisation_of_ones_own_is_tried_in_the_other_order():
    own = Normalise((0.1, 0.2, 0.3), ONE, channels="BGR")
    preprocessing = other_preprocessings(own)
    assert len(preprocessing) == 5 and set(preprocessing) > {"BGR in [0, 1]", "BGR in 0..255"}
    swapped = preprocessing["RGB with the declared mean and std"]
    assert describe(swapped) == "channels=RGB, scale=1, mean=(0.3, 0.2, 0.1), std=(1, 1, 1)"
