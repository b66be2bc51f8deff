"""The small U-Net of our own."""

import pytest
import torch

from stillroom.errors import UserError
from stillroom.networks.unet import UNet

HALF = (0.5, 0.5, 0.5)


def test_taps_have_the_strides_that_their_names_promise():
    network = UNet(4, 3, 5, HALF, HALF).eval()
    logits, features = network.forward_taps(torch.rand(2, 3, 32, 48), network.taps)
    assert logits.shape == (2, 5, 32, 48)
    shapes = {tap: tuple(feature.shape[1:]) for tap, feature in features.items()}
    assert shapes == {
        "encoder.0": (4, 32, 48),
        "encoder.1": (8, 16, 24),
        "encoder.2": (16, 8, 12),
        "encoder.3": (32, 4, 6),
        "decoder.0": (16, 8, 12),
        "decoder.1": (8, 16, 24),
        "decoder.2": (4, 32, 48),
    }


@pytest.mark.parametrize(("width", "parameters"), [(4, 30_864), (16, 488_052)])
def test_parameter_counts_are_those_of_the_docstring(width: int, parameters: int):
    network = UNet(width, 3, 4, HALF, HALF)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_tapping_does_not_change_the_logits():
    network, image = UNet(4, 2, 3, HALF, HALF).eval(), torch.rand(1, 3, 16, 16)
    assert torch.equal(network(image), network.forward_taps(image, ("decoder.0",))[0])


def test_the_picture_is_normalised_inside():
    image = torch.rand(1, 3, 8, 8)
    network = UNet(4, 2, 3, HALF, HALF).eval()
    plain = UNet(4, 2, 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    plain.load_state_dict(network.state_dict())
    assert torch.allclose(network(image), plain((image - 0.5) / 0.5), atol=1e-6)


def test_a_size_that_does_not_fit_names_the_nearest_that_does():
    with pytest.raises(UserError, match="nearest legal size is 32 x 48"):
        UNet(4, 3, 2, HALF, HALF)(torch.rand(1, 3, 33, 44))


def test_an_unknown_tap_lists_the_legal_ones():
    with pytest.raises(UserError, match=r"encoder\.0, encoder\.1, decoder\.0") as caught:
        UNet(4, 1, 2, HALF, HALF).forward_taps(torch.rand(1, 3, 8, 8), ("encoder.7",))
    assert caught.value.found == "encoder.7"
