"""What needs no label is found by what the teacher does, not by what its flags say."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.extraction.health import UNSTEADY, examine, observe, steadiness
from stillroom.pictures.dataset import Picture


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(6)]
    inside = (0, 0, 32, 32)
    return [Picture(key=str(i), image=m, mask=None, inside=inside) for i, m in enumerate(images)]


@dataclass
class Saying:
    """A teacher that says what a function makes of the picture."""

    function: Callable[[Tensor], Tensor]
    preprocessing: None = None
    damage: tuple[str, ...] = ()
    provider: str = "arithmetic"
    identity: tuple = ()

    def __call__(self, image, *, rows=(), preprocessing=None, boxes=None):
        return {"said": self.function(image)}


def norm(**fields) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(3, **fields).eval().requires_grad_(False)


def test_a_function_of_the_picture_is_steady(pictures):
    figures, reasons = steadiness(Saying(norm()), pictures)["said"]
    assert reasons == []
    assert figures["repeat_error"] == 0 and figures["batch_error"] < UNSTEADY / 100


@pytest.mark.parametrize("number", [1, 2, 6])
def test_batch_norm_in_training_mode_is_found_with_any_number_of_pictures(pictures, number):
    figures, (reason,) = steadiness(Saying(norm().train()), pictures[:number])["said"]
    assert "BatchNorm in training mode" in reason
    assert figures["batch_error"] > UNSTEADY and figures["repeat_error"] < UNSTEADY


def test_batch_norm_that_says_it_is_in_evaluation_is_found_all_the_same(pictures):
    layer = norm(track_running_stats=False)
    assert not layer.training
    _, (reason,) = steadiness(Saying(layer), pictures)["said"]
    assert "depends on the other pictures of the batch" in reason


def test_dropout_is_found_and_not_called_batch_norm(pictures):
    torch.manual_seed(0)
    (reason,) = steadiness(Saying(lambda image: functional.dropout(image, 0.1)), pictures)["said"][
        1
    ]
    assert "Dropout" in reason and "BatchNorm" not in reason


def test_a_teachers_batch_norm_in_training_mode_is_found_in_logits_and_taps(tiny_recipe, pictures):
    built = tiny_recipe.teachers[0].build("cpu")
    assert all(reasons == [] for _, reasons in steadiness(built, pictures).values())
    for module in built._network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    found = steadiness(built, pictures)
    assert found.keys() == {"shapes", "inner"}
    assert all("BatchNorm" in reason for _, (reason,) in found.values())


def examined(pictures, function, kind="features"):
    return examine(observe(Saying(function), pictures)["said"], kind)


def test_a_channel_that_is_one_map_for_every_picture_is_dead(pictures):
    ramp = torch.arange(32.0).expand(32, 32)

    def function(image):
        return torch.cat([image, ramp.expand(len(image), 1, 32, 32)], 1)

    figures, infinite, dead = examined(pictures, function)
    assert figures["dead_channels"] == 0.25 and infinite == dead == []
    _, _, (reason,) = examined(pictures, function, "logits")
    assert reason == "dead: 25% of the channels never change"


def test_a_channel_that_saturates_is_not_dead(pictures):
    figures, _, _ = examined(pictures, lambda image: (9 * image - 1).clamp(0, 6))
    assert figures["dead_channels"] == 0


def test_a_class_that_no_picture_shows_is_not_dead_where_probabilities_are_clamped(pictures):
    def function(image):
        image = image.clone()
        image[:, 2] = float(np.log(2.0**-20))
        return image

    figures, _, dead = examined(pictures, function, "logits")
    assert figures["dead_channels"] == 0 and dead == []


def test_the_channels_that_are_not_finite_are_counted(pictures):
    def function(image):
        image = image.clone()
        image[0, 1, 5, 5] = torch.inf
        return image

    _, (reason,), _ = examined(pictures, function)
    assert "not finite (in 1 of 3 channels)" in reason
