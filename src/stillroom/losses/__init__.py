"""Loss terms as sums and counts: functions first, then the dataclasses that name them."""

from stillroom.losses.class_weights import ClassWeights
from stillroom.losses.feature_terms import CauchySchwarz, ChannelKL, FeatureCosine, FeatureMSE
from stillroom.losses.label_terms import (
    BinaryCrossEntropy,
    CrossEntropy,
    Dice,
    Focal,
    HeadAgreement,
    RunningCrossEntropy,
)
from stillroom.losses.logit_terms import LogitCosine, LogitMSE, SoftKL
from stillroom.losses.needs import CountsClasses, FollowsClasses, Needs, Term
from stillroom.losses.schedules import Temperature, epoch_progress

__all__ = [
    "BinaryCrossEntropy",
    "CauchySchwarz",
    "ChannelKL",
    "ClassWeights",
    "CountsClasses",
    "CrossEntropy",
    "Dice",
    "FeatureCosine",
    "FeatureMSE",
    "Focal",
    "FollowsClasses",
    "HeadAgreement",
    "LogitCosine",
    "LogitMSE",
    "Needs",
    "RunningCrossEntropy",
    "SoftKL",
    "Temperature",
    "Term",
    "epoch_progress",
]
