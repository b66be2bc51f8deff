"""The light DeepLabV3 over MobileNetV3-Large."""

import pytest
import torch
from torch.nn import functional
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from stillroom.errors import UserError
from stillroom.networks.deeplab_lite import DeepLabLite
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD

PLAIN = ((0.0,) * 3, (1.0,) * 3)


def test_the_parameter_count_is_that_of_the_published_network():
    with torch.device("meta"):
        network = DeepLabLite(21, IMAGENET_MEAN, IMAGENET_STD)
    assert sum(p.numel() for p in network.parameters()) == 3_813_957


def test_the_backbone_is_that_of_torchvisions_deeplab():
    network = DeepLabLite(3, *PLAIN).eval()
    model = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, aux_loss=True)
    backbone = model.backbone.eval()
    network.backbone.load_state_dict(backbone.state_dict())
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        _, features = network.forward_taps(image, ("backbone",))
        wanted = backbone(image)["out"]
    assert features["backbone"].shape == (1, 960, 4, 6)
    torch.testing.assert_close(features["backbone"], wanted)


def test_logits_are_the_head_of_the_feature_enlarged_bilinearly():
    torch.manual_seed(0)
    network = DeepLabLite(3, *PLAIN)
    with torch.no_grad():
        network(torch.rand(4, 3, 64, 64))  # gives BatchNorm statistics that let a signal through
    network.eval()
    state = {name.removeprefix("classifier."): v for name, v in network.state_dict().items()}
    with torch.no_grad():
        logits, features = network.forward_taps(torch.rand(1, 3, 64, 64), ("backbone",))
        x = features["backbone"]
        for conv, norm, padding in (("0", "1", 0), ("3", "4", 6)):
            x = functional.conv2d(
                x, state[f"{conv}.weight"], padding=padding, dilation=max(1, padding)
            )
            x = functional.batch_norm(
                x,
                state[f"{norm}.running_mean"],
                state[f"{norm}.running_var"],
                state[f"{norm}.weight"],
                state[f"{norm}.bias"],
            ).relu()
        x = functional.conv2d(x, state["7.weight"], state["7.bias"])
    wanted = functional.interpolate(x, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, wanted)
    assert network.classifier[6].p == 0.1


def test_a_size_that_does_not_fit_names_the_nearest_that_does():
    with torch.device("meta"):
        network = DeepLabLite(3, *PLAIN)
    with pytest.raises(UserError, match="nearest legal size is 64 x 80"):
        network(torch.rand(1, 3, 60, 72))
