"""A recipe whose student is an `nn.Module` of one's own."""

from dataclasses import replace

from torch import nn

from stillroom.recipe import Recipe
from stillroom.recipes.tiny import tiny
from stillroom.students.definitions import TorchStudent


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, image):
        feature = self.stem(image)
        return {"out": self.head(feature), "feature": feature}


def recipe() -> Recipe:
    student = TorchStudent(
        factory=f"{__file__}:Small", classes=4, taps=("stem",), stride=4, resize_logits=True
    )
    terms = (*tiny().terms[:4], replace(tiny().terms[4], tap="stem"))
    return replace(tiny(), name="own-student", student=student, terms=terms)
