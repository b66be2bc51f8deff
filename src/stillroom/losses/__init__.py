"""Loss terms as sums and counts: functions first, then the dataclasses that name them."""

from stillroom.losses.schedules import Temperature, epoch_progress
from stillroom.losses.terms import (
    BinaryCrossEntropy,
    CrossEntropy,
    Dice,
    FeatureCosine,
    FeatureMSE,
    LogitMSE,
    SoftKL,
)

Term = CrossEntropy | BinaryCrossEntropy | Dice | SoftKL | LogitMSE | FeatureMSE | FeatureCosine

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Dice",
    "FeatureCosine",
    "FeatureMSE",
    "LogitMSE",
    "SoftKL",
    "Temperature",
    "Term",
    "epoch_progress",
]
