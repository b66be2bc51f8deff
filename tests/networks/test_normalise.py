"""The input normalisation of a network."""

import pytest
import torch
from torchvision.transforms.functional import normalize

from stillroom.errors import UserError
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise


def test_it_is_that_of_torchvision():
    image = torch.rand(2, 3, 4, 5)
    ours = Normalise(IMAGENET_MEAN, IMAGENET_STD)(image)
    assert torch.allclose(ours, normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD)))


def test_channel_order_and_scale_come_before_mean_and_std():
    image = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    normalise = Normalise((1.0, 2.0, 3.0), (1.0, 2.0, 4.0), scale=255.0, channels="BGR")
    assert normalise(image).flatten().tolist() == [254.0, (127.5 - 2) / 2, -3 / 4]


def test_nothing_of_it_is_among_the_weights():
    assert not Normalise(IMAGENET_MEAN, IMAGENET_STD).state_dict()


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0,), (1.0, 1.0, 1.0)), ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))]
)
def test_what_cannot_be_normalised_with_is_refused(mean: tuple, std: tuple):
    with pytest.raises(UserError, match="not possible"):
        Normalise(mean, std)
