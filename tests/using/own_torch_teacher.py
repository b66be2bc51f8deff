"""A recipe whose teacher is an `nn.Module` of one's own; its logits and one module are kept."""

from dataclasses import replace

from torch import nn

from stillroom.recipe import Recipe
from stillroom.recipes.tiny import tiny
from stillroom.teachers.own_configs import TorchTeacher


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.SiLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, image):
        return {"out": self.head(self.stem(image)), "aux": None}


def recipe() -> Recipe:
    factory = f"{__file__}:Net"
    teacher = TorchTeacher(factory=factory, target="shapes", outputs=(("inner", "stem"),))
    return replace(tiny(), name="own-teacher", teachers=(teacher,))
