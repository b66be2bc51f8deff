"""The recipes by name: one file per system, one function per recipe."""

from collections.abc import Callable

from stillroom.recipe import Recipe
from stillroom.recipes.b3_b0 import b3_b0_yolo
from stillroom.recipes.few_labels import (
    people_few,
    people_few_plain,
    street_few,
    street_few_plain,
    street_teacher,
)
from stillroom.recipes.people import people_lite, people_teacher
from stillroom.recipes.tiny import tiny, tiny_plain, tiny_teacher

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
    "b3-b0-yolo": b3_b0_yolo,
}
