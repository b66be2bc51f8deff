"""The U-Net over torchvision's VGG16 or ResNet50."""

import pytest
import torch
from torch.nn import functional
from torchvision.models import resnet50, vgg16

from stillroom.errors import UserError
from stillroom.networks.backbone_unet import BackboneUNet
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD

PLAIN = ((0.0,) * 3, (1.0,) * 3)
# module of torchvision's network after which each feature is taken
VGG16 = {"f1": 3, "f2": 8, "f3": 15, "f4": 22, "f5": 29}


@pytest.fixture(scope="module")
def vgg() -> BackboneUNet:
    return BackboneUNet("vgg16", 3, *PLAIN).eval()


def count(backbone: str) -> tuple[int, int]:
    with torch.device("meta"):
        network = BackboneUNet(backbone, 10, IMAGENET_MEAN, IMAGENET_STD)
    return tuple(sum(p.numel() for p in m.parameters()) for m in (network, network.encoder))


def test_parameter_counts_are_those_of_the_published_networks():
    assert count("vgg16") == (24_891_722, 14_714_688)
    with torch.device("meta"):
        classifier = sum(p.numel() for p in resnet50().fc.parameters())
        whole = sum(p.numel() for p in resnet50().parameters())
    total, encoder = count("resnet50")
    assert total == 43_933_386 and encoder == whole - classifier


@pytest.mark.parametrize(
    ("backbone", "channels", "first"),
    [("vgg16", (64, 128, 256, 512, 512), 1), ("resnet50", (64, 256, 512, 1024, 2048), 2)],
)
def test_taps_have_the_channels_and_strides_of_the_published_networks(backbone, channels, first):
    network = BackboneUNet(backbone, 3, *PLAIN).eval()
    with torch.no_grad():
        logits, features = network.forward_taps(torch.rand(1, 3, 64, 96), network.taps)
    assert logits.shape == (1, 3, 64, 96) and list(features) == ["f1", "f2", "f3", "f4", "f5"]
    for number, (c, feature) in enumerate(zip(channels, features.values(), strict=True)):
        stride = first * 2**number
        assert feature.shape == (1, c, 64 // stride, 96 // stride)


def test_the_features_of_vgg16_are_those_that_torchvision_computes(vgg):
    with torch.device("meta"):  # its classifier is large
        reference = vgg16(weights=None).features
    reference.load_state_dict(vgg.encoder.state_dict(), assign=True)
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        _, features = vgg.forward_taps(image, vgg.taps)
        for tap, last in VGG16.items():
            assert torch.equal(features[tap], reference[: last + 1](image))


def test_the_features_of_resnet50_are_those_of_torchvision_with_a_pool_that_has_no_padding():
    network = BackboneUNet("resnet50", 3, *PLAIN).eval()
    model = resnet50(weights=None).eval()
    model.load_state_dict(network.encoder.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        _, features = network.forward_taps(image, ("f1", "f2", "f5"))
        f1 = model.relu(model.bn1(model.conv1(image)))
        # the cell beyond the last one, which rounding up asks for, holds no maximum
        f2 = model.layer1(
            functional.max_pool2d(functional.pad(f1, (0, 1, 0, 1), value=-torch.inf), 3, 2)
        )
        f5 = model.layer4(model.layer3(model.layer2(f2)))
    for tap, wanted in (("f1", f1), ("f2", f2), ("f5", f5)):
        torch.testing.assert_close(features[tap], wanted)


def test_the_decoder_is_the_one_of_the_table(vgg):
    state, image = vgg.state_dict(), torch.rand(1, 3, 16, 32)

    def convolve(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    with torch.no_grad():
        logits, features = vgg.forward_taps(image, vgg.taps)
        x = features["f5"]
        for block, tap in enumerate(("f4", "f3", "f2", "f1")):
            x = functional.interpolate(
                x, features[tap].shape[2:], mode="bilinear", align_corners=True
            )
            x = torch.cat([features[tap], x], 1)
            for layer in (0, 2):
                x = convolve(x, f"decoder.{block}.convolutions.{layer}").relu()
        head = functional.conv2d(
            x, state["segmentation_head.weight"], state["segmentation_head.bias"]
        )
    torch.testing.assert_close(logits, head)


def test_random_weights_keep_the_scale_of_the_signal():
    torch.manual_seed(0)
    network = BackboneUNet("vgg16", 3, IMAGENET_MEAN, IMAGENET_STD).eval()
    with torch.no_grad():
        logits, features = network.forward_taps(torch.rand(1, 3, 64, 64), ("f1",))
    assert 0.02 < float(logits.std()) < 50
    assert 0.02 < float(features["f1"].std()) < 50


@pytest.mark.parametrize(("backbone", "size"), [("vgg16", "32 x 32"), ("resnet50", "32 x 64")])
def test_a_size_that_does_not_fit_names_the_nearest_that_does(backbone, size):
    with pytest.raises(UserError, match=f"nearest legal size is {size}"):
        BackboneUNet(backbone, 1, *PLAIN)(torch.rand(1, 3, 33, 39 if backbone == "vgg16" else 50))
