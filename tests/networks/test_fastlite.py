"""FastLiteSSNet: its size, its grids, and its two modules by their formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from stillroom.errors import UserError
from stillroom.networks.backbone_unet import BackboneUNet
from stillroom.networks.fastlite import BEGM, FCSF, FastLite

PLAIN = ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("width", "parameters"), [(0.3, 609_481), (0.5, 1_720_862), (1.0, 6_867_502)]
)
def test_parameter_counts_are_those_of_the_published_network(width: float, parameters: int):
    with torch.device("meta"):
        network = FastLite(width, 10, *PLAIN)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_every_stage_halves_the_map_and_taps_lie_on_the_grids_of_vgg16():
    network = FastLite(0.3, 4, *PLAIN).eval()
    logits, features = network.forward_taps(torch.rand(2, 3, 32, 48), network.taps)
    assert logits.shape == (2, 4, 32, 48)
    assert {tap: tuple(feature.shape[1:]) for tap, feature in features.items()} == {
        "skip1": (9, 32, 48),
        "skip2": (19, 16, 24),
        "skip3": (38, 8, 12),
        "skip4": (76, 4, 6),
        "fused": (76, 2, 3),
    }
    teacher = BackboneUNet("vgg16", 4, *PLAIN).eval()
    _, wanted = teacher.forward_taps(torch.rand(1, 3, 32, 48), teacher.taps)
    for ours, theirs in zip(features.values(), wanted.values(), strict=True):
        assert ours.shape[2:] == theirs.shape[2:]


def test_the_second_stage_sees_the_pooled_output_of_the_first():
    network, image = FastLite(0.3, 2, *PLAIN).eval(), torch.rand(1, 3, 16, 16)
    _, features = network.forward_taps(image, ("skip1", "skip2"))
    pooled = functional.max_pool2d(features["skip1"], 2)
    assert torch.equal(features["skip2"], network.encoder[1](pooled))


def test_fusing_is_the_weighted_sum_of_all_scales_on_the_smallest_grid():
    torch.manual_seed(0)
    module = FCSF([3, 5], 4).eval()
    with torch.no_grad():
        module.mixture.copy_(torch.tensor([0.0, 1.0]))
    fine, coarse = torch.rand(1, 3, 8, 8), torch.rand(1, 5, 4, 4)
    shared = module.shared.weight.flatten(1)
    share = float(torch.tensor(1.0).sigmoid())  # softmax of (0, 1)
    small = functional.interpolate(fine, (4, 4), mode="bilinear", align_corners=True)
    parts = [
        torch.einsum("oi,bihw->bohw", shared @ layer.weight.flatten(1), x)
        for layer, x in zip(module.each, (small, coarse), strict=True)
    ]
    wanted = module.fuse((1 - share) * parts[0] + share * parts[1])
    torch.testing.assert_close(module([fine, coarse]), wanted)
    assert (FCSF([3, 5, 7, 9], 4).mixture == 0.25).all()


def test_what_the_boundary_map_marks_is_doubled_and_the_rest_stays():
    module, x = BEGM(4).eval(), torch.rand(2, 4, 6, 6)
    for marked, factor in ((-1.0, 1.5), (50.0, 2.0)):  # of ReLU(-1) = 0, sigmoid is 1/2
        module.edges[1].bias.data.fill_(marked)
        module.edges[1].weight.data.zero_()
        module.edges[3].weight.data.fill_(1.0)
        torch.testing.assert_close(module(x), module.after(factor * x))


def test_first_weights_have_the_published_distribution():
    torch.manual_seed(0)
    network = FastLite(0.5, 10, *PLAIN)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.bias == 0).all() and 0.9 < float(module.weight.detach().mean()) < 1.1
        elif isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert (network.segmentation_head.bias == 0).all()


def test_every_parameter_gets_a_gradient():
    network = FastLite(0.3, 3, *PLAIN)
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None]
    assert silent == []


def test_a_size_that_does_not_fit_names_the_nearest_that_does():
    with pytest.raises(UserError, match="nearest legal size is 32 x 48"):
        FastLite(0.3, 2, *PLAIN)(torch.rand(1, 3, 33, 44))
