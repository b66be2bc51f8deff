"""Synthetic shapes, nothing to download: a small U-Net teaches a smaller one. Together the three
use every kind of term.

    stillroom demo                             all of it, in under three minutes on two cores

    stillroom train tiny-teacher    a teacher, supervised, on all masks
    stillroom cache tiny               what it says is kept
    stillroom train tiny-plain      a student on a few masks
    stillroom train tiny            the same with what the teacher said

Figures: docs/results.md.
"""

from dataclasses import replace

from stillroom.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Dice,
    FeatureCosine,
    FeatureMSE,
    LogitMSE,
    SoftKL,
    Temperature,
)
from stillroom.recipe import Augment, Data, Recipe, Run
from stillroom.recipe_optimizer import AdamW
from stillroom.students.definitions import UNetStudent
from stillroom.teachers.configs import RunTeacher

_DATA = Data(shards="shards/shapes")


def tiny_teacher() -> Recipe:
    """A small U-Net on every mask."""
    return Recipe(
        name="tiny-teacher",
        data=_DATA,
        student=UNetStudent(width=12, depth=3, classes=4),
        terms=(CrossEntropy(weight=1.0), BinaryCrossEntropy(weight=0.5), Dice(weight=0.5)),
        augment=Augment(photometric=0.2, mirror=True),
        optimizer=AdamW(lr=4e-3),
        batch=16,
        micro_batch=16,
        epochs=10,
        run=Run(evaluate_every=5),
    )


def tiny_plain() -> Recipe:
    """A smaller U-Net on one mask in twenty."""
    return Recipe(
        name="tiny-plain",
        data=replace(_DATA, label_share=0.05),
        student=UNetStudent(width=8, depth=3, classes=4),
        terms=(CrossEntropy(weight=1.0), Dice(weight=0.5)),
        augment=Augment(photometric=0.2),
        optimizer=AdamW(lr=4e-3),
        batch=16,
        micro_batch=16,
        epochs=10,
        run=Run(evaluate_every=5),
    )


def tiny() -> Recipe:
    """The same student on the same masks, and on what the teacher said of every picture."""
    plain = tiny_plain()
    distilled = (
        SoftKL(
            target="shapes", weight=1.0, temperature=Temperature(start=3.0, end=1.0, kind="cosine")
        ),
        LogitMSE(target="shapes", weight=0.05),
        FeatureMSE(target="inner", tap="encoder.2", hidden=32, weight=0.1),
        FeatureCosine(target="inner", tap="encoder.2", hidden=32, weight=0.1),
    )
    return replace(
        plain,
        name="tiny",
        teachers=(
            RunTeacher(target="shapes", path="runs/tiny-teacher", taps=(("inner", "encoder.2"),)),
        ),
        codec={"shapes": "float16", "inner": "float16"},
        terms=(CrossEntropy(weight=0.3), Dice(weight=0.15), *distilled),
    )
