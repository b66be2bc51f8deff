"""The binary U-Net of any width, for grey or coloured pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stillroom.errors import UserError
from stillroom.networks.binary_unet import BinaryUNet, Grey

PLAIN = ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("width", "channels", "parameters", "counted"),
    [
        (64, 1, 31_056_963, 31_064_901),
        (32, 1, 7_768_099, 7_772_069),
        (16, 1, 1_943_955, 1_945_941),
        (8, 1, 486_955, 487_949),
        (4, 1, 122_223, 122_721),
        (4, 3, 122_299, 122_801),
    ],
)
def test_the_counts_are_the_published_ones_with_the_running_statistics(
    width: int, channels: int, parameters: int, counted: int
):
    with torch.device("meta"):
        network = BinaryUNet(width, channels, *PLAIN)
    assert sum(p.numel() for p in network.parameters()) == parameters
    running = sum(v.numel() for name, v in network.state_dict().items() if "running_" in name)
    assert parameters + running == counted


@pytest.mark.parametrize("channels", [1, 3])
def test_taps_have_the_strides_that_their_names_promise(channels: int):
    network = BinaryUNet(4, channels, *PLAIN).eval()
    logits, features = network.forward_taps(torch.rand(2, 3, 32, 48), network.taps)
    assert logits.shape == (2, 1, 32, 48)
    for level in range(5):
        c, y, x = 4 * 2**level, 32 // 2**level, 48 // 2**level
        assert features[f"encoder.{level}"].shape == (2, c, y, x)
        if level < 4:
            assert features[f"decoder.{3 - level}"].shape == (2, c, y, x)


def test_grey_is_what_pillow_makes_of_a_coloured_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(pixels).convert("L"))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    found = Grey()(image)[0, 0].numpy() * 255
    assert np.abs(found - wanted).max() <= 1.0


def test_colours_of_one_luma_are_one_to_the_grey_network():
    network = BinaryUNet(4, 1, *PLAIN).eval()
    red = torch.zeros(1, 3, 16, 16)
    red[:, 0] = 1.0
    assert torch.allclose(network(red), network(torch.full((1, 3, 16, 16), 0.299)), atol=1e-6)
    assert "grey.luma" not in network.state_dict()


def test_the_convolution_of_even_size_looks_to_the_right_and_down():
    network = BinaryUNet(2, 1, *PLAIN).eval()
    reduce = network.decoder[3].reduce
    with torch.no_grad():
        reduce[2].weight.zero_()
        reduce[2].weight[0, 0] = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    x = torch.zeros(1, 4, 2, 2)
    x[0, 0] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    wanted = [[1111, 2121, 2222, 202], [3311, 4321, 4422, 402], [3333, 4343, 4444, 404]]
    assert reduce(x)[0, 0].tolist() == [*wanted, [33, 43, 44, 4]]


def test_half_of_the_two_coarsest_maps_is_dropped_while_training():
    network, image = BinaryUNet(4, 1, *PLAIN), torch.rand(2, 3, 32, 32)
    seen: list[float] = []
    network.dropout.register_forward_hook(
        lambda module, args, output: seen.append(
            float((output == 0).sum() / (args[0] != 0).sum().clamp(min=1))
        )
    )
    network.train()(image)
    assert len(seen) == 2 and all(share > 0.3 for share in seen)
    network.eval()
    assert torch.equal(network(image), network(image))


def test_the_decoder_has_no_normalisation_and_the_encoder_one_after_each_relu():
    network = BinaryUNet(4, 1, *PLAIN)
    assert not [m for m in network.decoder.modules() if isinstance(m, nn.BatchNorm2d)]
    kinds = [nn.Conv2d, nn.ReLU, nn.BatchNorm2d] * 2
    assert all([type(m) for m in block] == kinds for block in network.encoder)


def test_a_size_that_does_not_fit_names_the_nearest_that_does():
    with pytest.raises(UserError, match="nearest legal size is 480 x 752"):
        BinaryUNet(2, 1, *PLAIN)(torch.rand(1, 3, 481, 750))
