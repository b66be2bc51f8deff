"""A recipe whose targets lie in files already: masks of another program, and maps of features."""

from dataclasses import replace

from stillroom.recipe import Recipe
from stillroom.recipes.tiny import tiny
from stillroom.teachers.own_configs import FileTeacher


def recipe() -> Recipe:
    teachers = (
        FileTeacher(target="shapes", folder="masks", kind="mask", suffix=".png", classes=4),
        FileTeacher(target="inner", folder="features", kind="features"),
    )
    return replace(tiny(), name="from-files", teachers=teachers)
