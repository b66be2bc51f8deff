"""The recipes by name: one file per system, one function per recipe."""

from collections.abc import Callable

from stillroom.recipe import Recipe
from stillroom.recipes.b3_b0 import b3_b0_yolo
from stillroom.recipes.b3_b0_hierarchical import (
    b3_b0_hierarchical,
    b3_b0_hierarchical_plain,
    b3_b0_hierarchical_teacher,
)
from stillroom.recipes.fcn_mobilenet import (
    fcn_mobilenet_feature,
    fcn_mobilenet_plain,
    fcn_mobilenet_response,
    fcn_mobilenet_teacher,
)
from stillroom.recipes.few_labels import (
    people_few,
    people_few_plain,
    street_few,
    street_few_plain,
    street_teacher,
)
from stillroom.recipes.people import people_lite, people_teacher
from stillroom.recipes.soft_binary import soft_binary, soft_binary_teacher
from stillroom.recipes.tiny import tiny, tiny_plain, tiny_teacher
from stillroom.recipes.unet_fastlite import (
    unet_fastlite,
    unet_fastlite_plain,
    unet_fastlite_teacher,
)

RECIPES: dict[str, Callable[[], Recipe]] = {
    "tiny": tiny,
    "tiny-plain": tiny_plain,
    "tiny-teacher": tiny_teacher,
    "people-lite": people_lite,
    "people-teacher": people_teacher,
    "people-few": people_few,
    "people-few-plain": people_few_plain,
    "street-teacher": street_teacher,
    "street-few": street_few,
    "street-few-plain": street_few_plain,
    "unet-fastlite": unet_fastlite,
    "unet-fastlite-teacher": unet_fastlite_teacher,
    "unet-fastlite-plain": unet_fastlite_plain,
    "fcn-mobilenet-plain": fcn_mobilenet_plain,
    "fcn-mobilenet-response": fcn_mobilenet_response,
    "fcn-mobilenet-feature": fcn_mobilenet_feature,
    "fcn-mobilenet-teacher": fcn_mobilenet_teacher,
    "soft-binary": soft_binary,
    "soft-binary-teacher": soft_binary_teacher,
    "b3-b0-yolo": b3_b0_yolo,
    "b3-b0-hierarchical": b3_b0_hierarchical,
    "b3-b0-hierarchical-teacher": b3_b0_hierarchical_teacher,
    "b3-b0-hierarchical-plain": b3_b0_hierarchical_plain,
}
