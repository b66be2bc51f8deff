"""torchvision's FCN-ResNet50 with taps and a normalisation of its own."""

import pytest
import torch
from torchvision.models.segmentation import fcn_resnet50
from torchvision.transforms.functional import normalize

from stillroom.errors import UserError
from stillroom.networks.fcn import Fcn
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD

OWN = (IMAGENET_MEAN, IMAGENET_STD)


def test_parameter_counts_are_those_of_torchvision():
    with torch.device("meta"):
        with_aux, without = (Fcn(21, aux, *OWN) for aux in (True, False))
    assert sum(p.numel() for p in with_aux.parameters()) == 35_322_218
    head = 9 * 1024 * 256 + 2 * 256 + (256 + 1) * 21
    assert sum(p.numel() for p in without.parameters()) == 35_322_218 - head


def test_logits_the_auxiliary_ones_and_taps_are_those_of_torchvision():
    reference = fcn_resnet50(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    reference.eval()
    network = Fcn(5, True, *OWN).eval()
    assert network.load_state_dict(reference.state_dict())
    image, inner = torch.rand(1, 3, 64, 96), {}
    for name in ("layer1", "layer4"):
        reference.backbone[name].register_forward_hook(
            lambda module, args, output, name=name: inner.update({name: output.clone()})
        )
    with torch.no_grad():
        wanted = reference(normalize(image, *OWN))
        logits, features = network.forward_taps(image, ("layer1", "layer4", "aux"))
    torch.testing.assert_close(logits, wanted["out"])
    torch.testing.assert_close(features["aux"], wanted["aux"])
    torch.testing.assert_close(features["layer1"], inner["layer1"])
    torch.testing.assert_close(features["layer4"], inner["layer4"])
    assert features["layer1"].shape == (1, 256, 16, 24)
    assert features["layer4"].shape == (1, 2048, 8, 12)


def test_without_the_auxiliary_head_there_is_no_such_tap():
    with torch.device("meta"):
        network = Fcn(3, False, *OWN)
    with pytest.raises(UserError, match=r"one of layer1, layer2, layer3, layer4\n"):
        network.forward_taps(torch.rand(1, 3, 16, 16), ("aux",))


def test_a_size_that_does_not_fit_names_the_nearest_that_does():
    with torch.device("meta"):
        network = Fcn(3, False, *OWN)
    with pytest.raises(UserError, match="nearest legal size is 64 x 72"):
        network(torch.rand(1, 3, 61, 70))
