"""Any nn.Module as a network: its logits are found, its modules tapped, mistakes explained."""

import pytest
import torch
from torch import nn

from stillroom.errors import UserError
from stillroom.networks.build import build_network
from stillroom.networks.torch_network import TorchFields, TorchNetwork

HALF = (0.5, 0.5, 0.5)


class Answer(nn.Module):
    """Returns what `wrap` makes of logits at half the size."""

    def __init__(self, wrap=lambda logits: logits) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 2, 2, stride=2)
        self.pair = nn.Identity()
        self.wrap = wrap

    def forward(self, image):
        logits = self.down(image)
        self.pair((logits, logits))
        return self.wrap(logits)


def about(**more) -> TorchFields:
    return TorchFields(**{"factory": "mine.py:build", "classes": 2, "stride": 2, **more})


def test_a_tapped_map_is_what_the_module_returned_whatever_is_written_into_it_later():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True))
    network = TorchNetwork(module, about(mean=HALF, std=HALF, stride=1, taps=("0",)))
    image = torch.rand(1, 3, 4, 4)
    _, features = network.forward_taps(image, ("0",))
    assert torch.equal(features["0"], module[0]((image - 0.5) / 0.5)) and features["0"].min() < 0


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"out": x, "aux": 0}, lambda x: (x, 0)])
def test_logits_alone_in_a_dict_or_first_of_a_tuple_are_found_and_resized(wrap):
    module, image = Answer(wrap), torch.rand(2, 3, 8, 12)
    network = TorchNetwork(module, about(mean=HALF, std=HALF, taps=("down",), resize_logits=True))
    logits, features = network.forward_taps(image, ("down",))
    small = module.down((image - 0.5) / 0.5)
    assert torch.equal(features["down"], small)
    assert torch.equal(logits, nn.functional.interpolate(small, (8, 12), mode="bilinear"))
    assert torch.equal(network(image), logits)
    assert not module.down._forward_hooks


@pytest.mark.parametrize(
    ("fields", "wrap", "parts"),
    [
        ({}, lambda x: x, ("(1, 2, 4, 4)", "(1, 2, 8, 8)", "--student.resize-logits")),
        ({"resize_logits": True, "classes": 3}, lambda x: x, ("--student.classes",)),
        ({}, lambda x: {"logits": x}, ("mine.py:build", "NoneType")),
        ({"resize_logits": True}, lambda x: x[0], ("(2, 4, 4)",)),
        ({"taps": ("dwn",)}, lambda x: x, ("no module 'dwn'", "near names: down")),
        (
            {"taps": ("pair",), "resize_logits": True},
            lambda x: x,
            ("the output of pair is no map",),
        ),
        ({"stride": 3}, lambda x: x, ("nearest legal size",)),
    ],
)
def test_what_is_no_network_for_us_is_refused_with_both_sides(fields, wrap, parts):
    with pytest.raises(UserError) as caught:
        network = TorchNetwork(Answer(wrap), about(**fields))
        network.forward_taps(torch.rand(1, 3, 8, 8), network.taps)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"classes": "4"}, "description is wrong"),
        ({"extra": 1}, "description is wrong"),
        ({}, "no file mine.py"),
    ],
)
def test_a_description_is_checked_before_anything_is_called(change, what):
    with pytest.raises(UserError, match=what):
        build_network(about().architecture() | change, code="mine.py:build")
    with pytest.raises(UserError, match=what if change else r"--code mine\.py:build"):
        build_network(about().architecture() | change)


def test_a_function_that_makes_no_module_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("def build(): return 3\n")
    with pytest.raises(UserError, match="int"):
        build_network(about().architecture(), code=f"{tmp_path / 'mine.py'}:build")
    with pytest.raises(UserError, match="no function other"):
        build_network(about().architecture(), code=f"{tmp_path / 'mine.py'}:other")
