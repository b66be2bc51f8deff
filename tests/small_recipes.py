"""Recipes of the smallest size for the test of stillroom experiments."""

from dataclasses import replace

from stillroom.recipe import Recipe
from stillroom.recipes.tiny import tiny, tiny_plain, tiny_teacher
from stillroom.students.definitions import UNetStudent
from stillroom.teachers.configs import RunTeacher

_STUDENT = UNetStudent(width=4, depth=2, classes=4)


def _small(recipe: Recipe, name: str) -> Recipe:
    return replace(recipe, name=name, student=_STUDENT, batch=8, micro_batch=4, gate="off")


def teacher() -> Recipe:
    return _small(tiny_teacher(), "small-teacher")


def plain() -> Recipe:
    plain = _small(tiny_plain(), "small-plain")
    return replace(plain, data=replace(plain.data, label_share=0.5))


def broken() -> Recipe:
    return replace(plain(), name="small-broken", freeze=("nothing-of-that-name",))


def distilled() -> Recipe:
    teacher = RunTeacher(target="shapes", path="runs/small-teacher", taps=(("inner", "encoder.2"),))
    return replace(_small(tiny(), "small"), data=plain().data, teachers=(teacher,))
