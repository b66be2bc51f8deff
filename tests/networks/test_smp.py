"""smp's networks with taps: sizes, names, and what can be asked of them."""

import pytest
import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch import encoders

from stillroom.errors import UserError
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD
from stillroom.networks.smp import SmpNetwork, prefetch

SMALL = "tu-mobilenetv2_035"
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


def small(arch: str = "unet", classes: int = 2) -> SmpNetwork:
    return SmpNetwork(arch, SMALL, classes, *IMAGENET)


@pytest.mark.parametrize(
    ("encoder", "parameters", "channels"),
    [
        ("timm-efficientnet-b3", 13_159_033, (3, 40, 32, 48, 136, 384)),
        ("timm-efficientnet-b0", 6_251_469, (3, 32, 24, 40, 112, 320)),
        ("tu-efficientnet_b3", 12_561_529, (3, 24, 32, 48, 136, 384)),
    ],
)
def test_the_encoder_string_decides_size_and_channels(
    encoder: str, parameters: int, channels: tuple[int, ...]
):
    network = SmpNetwork("unet", encoder, 1, *IMAGENET)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert tuple(network.encoder.out_channels) == channels


def test_the_tap_of_the_b0_at_640_is_40_by_80_by_80():
    network = SmpNetwork("unet", "timm-efficientnet-b0", 1, *IMAGENET).eval()
    with torch.no_grad():
        logits, features = network.forward_taps(torch.rand(1, 3, 640, 640), ("encoder.3",))
    assert logits.shape == (1, 1, 640, 640)
    assert features["encoder.3"].shape == (1, 40, 80, 80)


def test_parameters_have_the_names_of_smp():
    reference = smp.create_model("unet", SMALL, None, classes=2)
    assert list(small().state_dict()) == list(reference.state_dict())


def test_logits_are_those_of_smp_on_the_normalised_picture():
    network = small().eval()
    reference = smp.create_model("unet", SMALL, None, classes=2).eval()
    reference.load_state_dict(network.state_dict())
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(image), reference(network.normalise(image)))


def test_decoder_taps_are_the_outputs_of_its_blocks_and_leave_no_hook():
    network = small().eval()
    taps = tuple(tap for tap in network.taps if tap.startswith("decoder"))
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        logits, features = network.forward_taps(image, taps)
        assert torch.equal(logits, network(image))
        assert torch.equal(network.segmentation_head(features["decoder.4"]), logits)
    shapes = [tuple(features[f"decoder.{block}"].shape[1:]) for block in range(5)]
    assert shapes == [(256, 4, 6), (128, 8, 12), (64, 16, 24), (32, 32, 48), (16, 64, 96)]
    assert not any(block._forward_hooks for block in network.decoder.blocks)


@pytest.mark.parametrize(
    "arch", ["unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3plus", "pan"]
)
def test_architectures_give_logits_of_the_picture_size_and_all_their_taps(arch: str):
    network = small(arch).eval()
    with torch.no_grad():
        logits, features = network.forward_taps(torch.rand(1, 3, 128, 128), network.taps)
    assert logits.shape == (1, 2, 128, 128)
    assert set(features) == set(network.taps)
    assert ("decoder.x_0_1" in network.taps) == (arch == "unetplusplus")


def test_taps_work_under_autocast_and_carry_gradients():
    network = small()
    with torch.autocast("cpu", torch.bfloat16):
        _, features = network.forward_taps(torch.rand(2, 3, 32, 32), ("encoder.3", "decoder.1"))
    sum(feature.float().sum() for feature in features.values()).backward()
    assert network.decoder.blocks[1].conv2[0].weight.grad is not None
    assert network.decoder.blocks[2].conv1[0].weight.grad is None


def test_decoder_channels_are_passed_on():
    network = SmpNetwork("unet", SMALL, 1, *IMAGENET, decoder_channels=(64, 32, 16, 8, 4))
    assert network.segmentation_head[0].in_channels == 4


def test_a_size_that_does_not_fit_names_the_nearest_that_does():
    with pytest.raises(UserError, match="nearest legal size is 96 x 64"):
        small()(torch.rand(1, 3, 100, 50))


def test_a_network_exports_with_free_size():
    size = {
        2: 32 * torch.export.Dim("y", min=2, max=9),
        3: 32 * torch.export.Dim("x", min=2, max=9),
    }
    image = torch.rand(1, 3, 64, 96)
    program = torch.export.export(small().eval(), (image,), dynamic_shapes=({**size},))
    other = torch.rand(1, 3, 96, 64)
    assert program.module()(other).shape == (1, 2, 96, 64)


@pytest.mark.parametrize(
    ("arch", "encoder", "channels", "what"),
    [
        ("unett", SMALL, None, "no such smp architecture"),
        ("dpt", SMALL, None, "no such smp architecture"),
        ("unet", "nonsense", None, "cannot build"),
        ("unet", "tu-nonsense", None, "cannot build"),
        ("fpn", SMALL, (8, 4), "cannot build"),
        ("unet", SMALL, (8, 4), "cannot build"),
    ],
)
def test_what_smp_does_not_know_is_one_clear_error(
    arch: str, encoder: str, channels: tuple[int, ...] | None, what: str
):
    with pytest.raises(UserError, match=what):
        SmpNetwork(arch, encoder, 1, *IMAGENET, decoder_channels=channels)


def test_a_failed_download_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    def no_route(name: str, weights: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(encoders, "get_encoder", no_route)
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        prefetch("timm-efficientnet-b0")
    assert "no route to host" in str(caught.value)


def test_an_encoder_without_published_weights_is_one_clear_error():
    with pytest.raises(UserError, match=f"no imagenet weights of {SMALL}"):
        prefetch(SMALL)


def test_imagenet_weights_land_in_the_encoder(monkeypatch: pytest.MonkeyPatch):
    """A stand-in for the download: the same encoder with marked weights."""
    asked: list[object] = []

    def fetched(name: str, weights: object) -> torch.nn.Module:
        asked.append(weights)
        encoder = real(name, weights=None)
        torch.nn.init.constant_(encoder.model.conv_stem.weight, 0.25)
        return encoder

    real = encoders.get_encoder
    module = __import__("importlib").import_module(
        "segmentation_models_pytorch.decoders.unet.model"
    )
    assert module.get_encoder is real  # smp's own models keep the real one
    monkeypatch.setattr(encoders, "get_encoder", fetched)
    network = SmpNetwork("unet", SMALL, 1, *IMAGENET, encoder_weights="imagenet")
    assert asked == [True]
    assert (network.encoder.model.conv_stem.weight == 0.25).all()
