"""Recipes that only benchmarks need."""

from stillroom.losses import FeatureMSE
from stillroom.recipe import Data, Recipe
from stillroom.students.definitions import UNetStudent
from stillroom.teachers.configs import OnnxTeacher


def inner_only() -> Recipe:
    """One teacher of features at the pictures' own size."""
    return Recipe(
        name="stage-1-memory",
        data=Data(shards="shards"),
        teachers=(OnnxTeacher(target="inner", path="stand_in.onnx", kind="features"),),
        student=UNetStudent(),
        terms=(FeatureMSE(target="inner", tap="encoder.0", weight=1.0),),
        gate="off",
    )
