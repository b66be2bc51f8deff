"""Two recipes whose teacher is a timm model: a vision transformer, and a convolutional network."""

from dataclasses import replace

from stillroom.losses import CrossEntropy, FeatureMSE
from stillroom.recipe import Recipe
from stillroom.recipes.tiny import tiny
from stillroom.teachers.own_configs import TimmTeacher


def transformer() -> Recipe:
    teacher = TimmTeacher(model="test_vit", taps=(("early", 1), ("late", -1)), size=(128, 192))
    terms = (CrossEntropy(), *(FeatureMSE(target=t, tap="encoder.2") for t in ("early", "late")))
    codec = {"early": "float16", "late": "float16"}
    return replace(tiny(), name="from-vit", teachers=(teacher,), terms=terms, codec=codec)


def convolutional() -> Recipe:
    teacher = TimmTeacher(model="test_resnet", taps=(("inner", 2),), size=(64, 96))
    terms = (CrossEntropy(), FeatureMSE(target="inner", tap="encoder.2"))
    codec = {"inner": "float16"}
    return replace(tiny(), name="from-cnn", teachers=(teacher,), terms=terms, codec=codec)
