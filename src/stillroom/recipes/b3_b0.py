"""U-Net EfficientNet-B3 and a YOLOv9-E ONNX detector teach U-Net EfficientNet-B0: person masks at
640x640.

    python tools/make_shards.py voc:PEOPLE --out shards/people-640 --size 640 640
    python tools/cache_teacher.py b3-b0-yolo
    python train_student.py b3-b0-yolo --precision fp16

The features take about .30 MB a picture, a fortieth of half precision, the logits .08 MB; no
student could tell such features of another detector from float16 (docs/results.md).

Source: PINTO0309/human-instance-segmentation (MIT), its B3 -> B0 distillation with YOLO features;
teacher weights ternaus/people_segmentation 2020-09-23a, which expect ImageNet mean and standard
deviation.

Departures, each a repair: the encoder trains (there, the feature term moved only a projection that
was thrown away); frozen BatchNorm does not drift because nothing is frozen; KL is the sum over
classes times T^2, a mean over valid pixels (there, times T); no clamp on any term; a loss that is
not finite stops the run; the teachers run once, not every epoch; the temperature is a field. As
there: weights, learning rate, hidden width,
temperature 3 to 1, 50 epochs of batches of 4, resizing that stretches. Not yet: augmentation. No
score is claimed until it has been trained on the original data.
"""

from stillroom.losses import BinaryCrossEntropy, Dice, FeatureMSE, LogitMSE, SoftKL, Temperature
from stillroom.recipe import Data, Recipe
from stillroom.recipe_optimizer import AdamW, Cosine
from stillroom.students.definitions import SmpStudent
from stillroom.teachers.configs import OnnxTeacher, SmpTeacher


def b3_b0_yolo() -> Recipe:
    """13.16 M parameters teach 6.25 M."""
    return Recipe(
        name="b3-b0-yolo",
        data=Data(shards="shards/people-640"),
        teachers=(
            SmpTeacher(
                target="person", path="models/2020-09-23a.pth", encoder="timm-efficientnet-b3"
            ),
            OnnxTeacher(
                target="yolo",
                path="models/yolov9_e_wholebody25_Nx3x640x640_featext_optimized.onnx",
                tensor="segmentation_model_34_Concat_output_0",
                kind="features",
            ),
        ),
        codec={"person": "logits8", "yolo": "stochastic:6"},
        student=SmpStudent(encoder="timm-efficientnet-b0", classes=1, weights="imagenet"),
        terms=(
            SoftKL(target="person", temperature=Temperature(start=3.0, end=1.0, kind="cosine")),
            LogitMSE(target="person", weight=0.5),
            BinaryCrossEntropy(weight=0.5),
            Dice(weight=1.0),
            FeatureMSE(target="yolo", tap="encoder.3", hidden=768, weight=0.5),
        ),
        optimizer=AdamW(lr=1e-4, weight_decay=1e-4, clip=1.0),
        schedule=Cosine(final=0.01),
        batch=4,
        micro_batch=4,
        epochs=50,
    )
