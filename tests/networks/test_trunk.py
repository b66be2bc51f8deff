"""A trunk ends where nothing more is kept of it."""

import torch
from torch import nn

from stillroom.networks.trunk import Trunk


def test_it_keeps_what_is_named_and_leaves_out_what_follows():
    layers = nn.ModuleDict({name: nn.Conv2d(1, 1, 1) for name in ("a", "b", "c", "d")})
    trunk = Trunk(layers.items(), {"a": "first", "c": "last"})
    assert list(trunk) == ["a", "b", "c"]
    assert trunk.state_dict().keys() == {f"{n}.{p}" for n in "abc" for p in ("weight", "bias")}
    image = torch.rand(1, 1, 2, 2)
    found = trunk(image)
    assert list(found) == ["first", "last"]
    assert torch.equal(found["first"], layers["a"](image))
    assert torch.equal(found["last"], layers["c"](layers["b"](found["first"])))
