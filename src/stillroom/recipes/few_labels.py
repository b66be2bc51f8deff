"""Where labels are few: a teacher trained on all masks teaches a smaller student that sees one mask
in twenty.

    stillroom train people-teacher --student.weights ENCODER.pth
    stillroom cache people-few
    stillroom train people-few-plain --student.weights ENCODER.pth
    stillroom train people-few --student.weights ENCODER.pth

`street-*` are the same with eleven classes. An epoch has as many steps whatever the label share, so
the two students see equally many pictures; the plain one sees its few labelled ones again and
again. Figures with seeds: docs/results.md.
"""

from dataclasses import replace

from stillroom.losses import BinaryCrossEntropy, CrossEntropy, Dice, LogitMSE, SoftKL, Temperature
from stillroom.recipe import Augment, Data, Recipe
from stillroom.recipes.people import people_teacher
from stillroom.teachers.configs import RunTeacher

_SHARE = 0.05
# half as wide as the teacher's: 0.73 M parameters instead of 1.79 M
_DECODER = (128, 64, 32, 16, 16)
_COOLING = Temperature(start=3.0, end=1.0, kind="cosine")


def people_few_plain() -> Recipe:
    """Person masks, one in twenty."""
    return _plain(
        people_teacher(), "people-few-plain", (BinaryCrossEntropy(weight=1.0), Dice(weight=1.0))
    )


def people_few() -> Recipe:
    """The same, with what `people-teacher` said."""
    return _distilled(people_few_plain(), "people-few", "person", "runs/people-teacher")


def street_teacher() -> Recipe:
    """Eleven classes of street scenes, every mask."""
    people = people_teacher()
    return replace(
        people,
        name="street-teacher",
        data=Data(shards="shards/street"),
        student=replace(people.student, classes=11),
        terms=(CrossEntropy(weight=1.0), Dice(weight=1.0)),
    )


def street_few_plain() -> Recipe:
    """Street scenes, one mask in twenty."""
    return _plain(
        street_teacher(), "street-few-plain", (CrossEntropy(weight=1.0), Dice(weight=1.0))
    )


def street_few() -> Recipe:
    """The same, with what `street-teacher` said."""
    return _distilled(street_few_plain(), "street-few", "street", "runs/street-teacher")


def _plain(teacher: Recipe, name: str, terms: tuple) -> Recipe:
    return replace(
        teacher,
        name=name,
        data=replace(teacher.data, label_share=_SHARE),
        student=replace(teacher.student, decoder_channels=_DECODER),
        terms=terms,
        augment=Augment(photometric=0.3),
        epochs=10,
    )


def _distilled(plain: Recipe, name: str, target: str, run: str) -> Recipe:
    return replace(
        plain,
        name=name,
        teachers=(RunTeacher(target=target, path=run),),
        codec={target: "logits8"},
        terms=(
            *plain.terms,
            SoftKL(target=target, weight=1.0, temperature=_COOLING),
            LogitMSE(target=target, weight=0.05),
        ),
    )
