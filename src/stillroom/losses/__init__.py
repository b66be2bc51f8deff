"""Loss terms as sums and counts: functions first, then the dataclasses that name them."""

from stillroom.losses.needs import Needs, Term
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

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Dice",
    "FeatureCosine",
    "FeatureMSE",
    "LogitMSE",
    "Needs",
    "SoftKL",
    "Temperature",
    "Term",
    "epoch_progress",
]
