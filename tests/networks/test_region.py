"""The network of one box of a picture."""

import pytest
import torch
from torch.nn import functional

from stillroom.errors import UserError
from stillroom.networks.build import build_network
from stillroom.networks.region import RegionFields, RegionNetwork

SMALL = {"cells": (8, 12), "channels": 16, "base": 4}
BOXES = torch.tensor([[0.0, 0.0, 64.0, 64.0], [10.0, 4.0, 40.0, 50.0]])


def network(**changes) -> RegionNetwork:
    torch.manual_seed(0)
    built = build_network(RegionFields(**{**SMALL, **changes}).architecture())
    assert isinstance(built, RegionNetwork)
    return built.eval()


@pytest.mark.parametrize(("encoder", "unet"), [("b3", 13_159_033), ("b0", 6_251_469)])
def test_the_unets_have_the_published_sizes_and_the_heads_are_equal(encoder: str, unet: int):
    with torch.device("meta"):
        built = network(
            encoder=f"timm-efficientnet-{encoder}", cells=(80, 60), channels=256, base=64
        )
    assert sum(p.numel() for p in built.unet.parameters()) == unet
    assert sum(p.numel() for p in built.parameters()) - unet == 12_960_940


def test_logits_are_made_of_the_heads():
    logits, heads = network().forward_taps(
        torch.rand(2, 3, 64, 64), ("bg_fg", "target"), boxes=BOXES
    )
    assert logits.shape == (2, 3, 16, 24)
    foreground, target = heads["bg_fg"], heads["target"]
    share = foreground.exp()[:, 1] / foreground.exp().sum(1)
    for channel in (0, 1):
        wanted = foreground[:, 1] + target[:, channel] * share
        assert torch.allclose(logits[:, 1 + channel], wanted, atol=1e-5)
    assert torch.equal(logits[:, 0], foreground[:, 0])


def test_a_picture_is_seen_in_its_own_box_alone():
    image, built = torch.rand(2, 3, 64, 64), network()
    both = built(image, BOXES)
    assert torch.allclose(built(image[1:], BOXES[1:]), both[1:], atol=1e-5)
    assert (built(image[1:], BOXES[:1]) - both[1:]).abs().max() > 1e-4


def test_boxes_are_sampled_at_the_centres_of_cells():
    from stillroom.networks.region import _sampled

    ramp = torch.arange(64.0).expand(1, 1, 64, 64) + 0.5  # of a pixel: where its centre lies
    found = _sampled(ramp, torch.tensor([[10.0, 0.0, 42.0, 64.0]]), (4, 8))
    assert torch.allclose(found[0, 0, 0], 10 + 4 * (torch.arange(8) + 0.5), atol=1e-4)


def test_all_of_it_learns_and_training_needs_no_more_than_boxes():
    built = network().train()
    functional.cross_entropy(
        built(torch.rand(2, 3, 64, 64), BOXES), torch.randint(0, 3, (2, 16, 24))
    ).backward()
    idle = [n for n, p in built.named_parameters() if p.grad is None]
    assert all(n.startswith("unet.encoder.") for n in idle)  # smp's unused head


def test_wrong_descriptions_and_sizes_are_refused():
    about = RegionFields(**SMALL).architecture()
    with pytest.raises(UserError, match="region"):
        build_network({**about, "cells": [4, 100_000]})
    with pytest.raises(UserError, match="multiples of 32"):
        network()(torch.rand(1, 3, 60, 64), BOXES[:1])
