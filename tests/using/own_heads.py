"""A recipe whose student and teacher have two heads besides their logits, and a tap whose grid is
another: the teacher's is averaged to stride 8.
"""

from dataclasses import replace

from torch import nn

from stillroom.losses import (
    CauchySchwarz,
    ChannelKL,
    CrossEntropy,
    FeatureCosine,
    Focal,
    LogitCosine,
    SoftKL,
    Temperature,
)
from stillroom.recipe import Recipe
from stillroom.recipes.tiny import tiny
from stillroom.students.definitions import TorchStudent
from stillroom.teachers.own_configs import TorchTeacher


class Heads(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=4), nn.BatchNorm2d(width), nn.SiLU()
        )
        self.logits, self.first = nn.Conv2d(width, 4, 1), nn.Conv2d(width, 2, 1)
        self.round = nn.Conv2d(width, 2, 1)

    def forward(self, image):
        feature = self.stem(image)
        return {"out": self.logits(feature), "bg_fg": self.first(feature), "2": self.round(feature)}


def wide() -> Heads:
    return Heads(12)


SOFT = Temperature(start=4.0)
TERMS = (
    CrossEntropy(class_weights="balanced"),
    SoftKL(target="shapes", class_weights="balanced"),
    # bg_fg is what the network returns under that name, round one of its modules
    CrossEntropy(output="bg_fg", relabel=(0, 1, 1, 1), align="labels", weight=0.5),
    SoftKL(target="said_bg_fg", output="bg_fg", temperature=SOFT, weight=0.3),
    Focal(output="round", relabel=(255, 1, 0, 0), align="labels", weight=0.5),
    SoftKL(target="said_round", output="round", temperature=SOFT, weight=0.3),
    LogitCosine(target="shapes", flatten=True, weight=0.5),
    ChannelKL(target="shapes", weight=0.1),
    CauchySchwarz(target="inner", tap="stem", align="student", weight=0.1),
    FeatureCosine(target="inner", tap="stem", hidden=None, align="teacher", flatten=True),
)


def recipe() -> Recipe:
    heads = (("said_bg_fg", "bg_fg"), ("said_round", "round"))
    teacher = TorchTeacher(
        factory=f"{__file__}:wide", target="shapes", outputs=(*heads, ("inner", "stem", 8))
    )
    student = TorchStudent(
        factory=f"{__file__}:Heads",
        classes=4,
        taps=("stem", "bg_fg", "round"),
        stride=4,
        resize_logits=True,
    )
    return replace(
        tiny(), name="own-heads", teachers=(teacher,), student=student, terms=TERMS, codec={}
    )
