"""People: any ONNX person mask and an inner tensor of any ONNX detector teach a small U-Net; the
structure of `b3-b0-yolo` on two CPU cores.

    stillroom shards voc:PEOPLE --out shards/people --size 256 256
    stillroom cache people-lite TEACHERS
    stillroom train people-lite TEACHERS --student.weights ENCODER.pth

with TEACHERS = --teachers.0.path MASK.onnx --teachers.1.path DETECTOR.onnx --teachers.1.tensor NAME

    stillroom train people-teacher      a teacher of one's own, on all masks

The defaults describe a person segmenter of RGB in [0, 1] that answers with a probability, and YOLOX
(BGR 0..255) tapped at its stride-8 Concat. Departures from `b3-b0-yolo`: smaller networks, 256x256,
no augmentation (its HEAVY and LIGHT are values for --augment).
Figures: docs/results.md.
"""

from stillroom.losses import BinaryCrossEntropy, Dice, FeatureMSE, LogitMSE, SoftKL, Temperature
from stillroom.recipe import Augment, Data, Recipe
from stillroom.recipe_optimizer import AdamW
from stillroom.students.definitions import SmpStudent
from stillroom.teachers.configs import OnnxTeacher

_SIGNED = (0.5, 0.5, 0.5)  # the encoder's weights expect RGB in [-1, 1]


def people_lite() -> Recipe:
    """A person mask and a detector's feature teach U-Net MobileNetV2 x0.35."""
    return Recipe(
        name="people-lite",
        data=Data(shards="shards/people"),
        teachers=(
            OnnxTeacher(target="person", path="models/person.onnx", kind="probabilities"),
            OnnxTeacher(
                target="detector",
                path="models/detector.onnx",
                tensor="input.427",
                kind="features",
                channels="BGR",
                scale=255.0,
            ),
        ),
        codec={"person": "logits8", "detector": "stochastic:6"},
        student=SmpStudent(encoder="tu-mobilenetv2_035", classes=1, mean=_SIGNED, std=_SIGNED),
        terms=(
            SoftKL(target="person", temperature=Temperature(start=3.0, end=1.0, kind="cosine")),
            LogitMSE(target="person", weight=0.5),
            BinaryCrossEntropy(weight=0.5),
            Dice(weight=1.0),
            FeatureMSE(target="detector", tap="encoder.3", hidden=128, weight=0.5),
        ),
        optimizer=AdamW(lr=1e-3),
        batch=8,
        micro_batch=8,
        epochs=10,
    )


def people_teacher() -> Recipe:
    """U-Net MobileNetV2 x0.35 on every mask, to teach others."""
    return Recipe(
        name="people-teacher",
        data=Data(shards="shards/people"),
        student=SmpStudent(encoder="tu-mobilenetv2_035", classes=1, mean=_SIGNED, std=_SIGNED),
        terms=(BinaryCrossEntropy(weight=1.0), Dice(weight=1.0)),
        augment=Augment(photometric=0.3, mirror=True),
        optimizer=AdamW(lr=2e-3),
        batch=8,
        micro_batch=8,
        epochs=20,
    )
