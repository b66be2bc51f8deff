"""Recipes that only benchmarks need; like any recipe file, it is found by its path."""

from dataclasses import replace
from pathlib import Path

from stillroom.losses import BinaryCrossEntropy, Dice, FeatureMSE
from stillroom.recipe import Data, Recipe
from stillroom.recipes.b3_b0 import b3_b0_yolo
from stillroom.recipes.few_labels import people_few_plain, street_few_plain
from stillroom.students.definitions import UNetStudent
from stillroom.teachers.configs import OnnxTeacher
from stillroom.teachers.own_configs import TorchTeacher


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


def b3_b0_torch() -> Recipe:
    """`b3-b0-yolo` with a detector in torch, for machines whose onnxruntime has no CUDA."""
    b3_b0 = b3_b0_yolo()
    detector = TorchTeacher(
        target=None,
        factory=f"{Path(__file__).with_name('detector.py')}:yolov9_e_sized",
        outputs=(("yolo", "features"),),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    return replace(b3_b0, name="b3-b0-torch", teachers=(b3_b0.teachers[0], detector))


def b0_alone() -> Recipe:
    """The student of `b3-b0-yolo` with the labels' terms only."""
    terms = (BinaryCrossEntropy(weight=0.5), Dice(weight=1.0))
    return replace(b3_b0_yolo(), name="b0-alone", teachers=(), codec={}, terms=terms)


def people_features() -> Recipe:
    """Person masks, one in twenty, and a detector's features of all pictures."""
    return _features(people_few_plain())


def street_features() -> Recipe:
    """Street scenes, one mask in twenty, and a detector's features of all pictures."""
    return _features(street_few_plain())


def _features(plain: Recipe) -> Recipe:
    """Add the inner tensor of a detector to a student of few labels, every row seen in turn."""
    detector = OnnxTeacher(
        target="detector",
        path="detector.onnx",
        tensor="input.427",
        kind="features",
        channels="BGR",
        scale=255.0,
    )
    feature = FeatureMSE(target="detector", tap="encoder.3", hidden=128, weight=0.5)
    return replace(
        plain,
        name=plain.name.replace("few-plain", "features"),
        teachers=(detector,),
        codec={"detector": "float16"},
        terms=(*plain.terms, feature),
    )
