"""Networks from their plain JSON description."""

import json

import pytest

from stillroom.errors import UserError
from stillroom.networks.build import build_network
from stillroom.networks.smp import SmpNetwork
from stillroom.networks.unet import UNet

UNET = {"name": "unet", "width": 4, "depth": 2, "classes": 3, "mean": [0, 0, 0], "std": [1, 1, 1]}
SMP = {
    "name": "smp",
    "arch": "unet",
    "encoder": "tu-mobilenetv2_035",
    "classes": 1,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "decoder_channels": [64, 32, 16, 8, 4],
}


def test_a_description_survives_json():
    assert isinstance(build_network(json.loads(json.dumps(UNET))), UNet)
    network = build_network(json.loads(json.dumps(SMP)))
    assert isinstance(network, SmpNetwork) and network.segmentation_head[0].in_channels == 4
    assert isinstance(build_network(SMP | {"decoder_channels": None}), SmpNetwork)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"name": "resnet"}, "no such network"),
        ({"name": None}, "no such network"),
        ({"extra": 1}, "extra"),
        ({"width": "4"}, r"\$\.width"),
        ({"width": 10**6}, r"\$\.width"),
        ({"depth": 0}, r"\$\.depth"),
        ({"mean": [0.5]}, r"\$\.mean"),
        ({"std": "abc"}, r"\$\.std"),
    ],
)
def test_a_wrong_description_is_refused(change: dict, what: str):
    with pytest.raises(UserError, match=what):
        build_network(UNET | change)


@pytest.mark.parametrize("channels", ["abc", [1, "2"], [0]])
def test_wrong_decoder_channels_are_refused(channels: object):
    with pytest.raises(UserError, match="decoder_channels"):
        build_network(SMP | {"decoder_channels": channels})


def test_a_missing_field_is_refused():
    with pytest.raises(UserError, match="depth"):
        build_network({"name": "unet", "width": 4})
