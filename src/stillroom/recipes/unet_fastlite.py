"""U-Net VGG16 (or ResNet50) teaches FastLiteSSNet by five features: several classes at 512x512.

    stillroom shards voc:PATH --out shards/voc-512 --size 512 512 --fit letterbox
    stillroom train unet-fastlite-teacher       [--student.backbone resnet50]
    stillroom cache unet-fastlite
    stillroom train unet-fastlite-plain         labels alone
    stillroom train unet-fastlite               labels and the five features
    stillroom evaluate runs/unet-fastlite

`--precision fp16` on a GPU, as there; `--student.classes N` in all of them for other pictures than
VOC's. Without a connection `--student.weights FILE`, or none and `--freeze-epochs 0`: a random
encoder must not be frozen. The teacher's focal loss and Dice are terms of weight 0, as there.

Source: Kzz1yt/U2Net (MIT) on bubbliiiing/unet-pytorch. As there: HDL .5 cross-entropy, .3
Cauchy-Schwarz (mean of five), .2 Dice; batches of 2; Adam 1e-4 whatever the batch, because both its
limits are that (`--optimizer.lr-limits 1e-5 1e-3` follows the batch; SGD there: 1e-2, limits 5e-4
and 1e-1); 300 and 200 epochs, the teacher's encoder frozen for 100 with its BatchNorm in evaluation
mode; rates that fall by a cosine with a tail.

Departures, each a repair:
- cross-entropy reads classes; there, whether a pixel is background, taken for its class
- the student's encoder pools, so its taps have the strides 1 2 4 8 16 of f1 to f5; there, all 1
- the 1x1 adapters are trained and kept until the end; there, new random ones in every step
- the divergence is Cauchy-Schwarz's; `--terms.1.kind cosine` and so on is what stands there
- a tap that is missing or does not fit ends the run; there, it was left out of the sum in silence
- nothing of the student is frozen, for all of it is random; there, 50 epochs train fusion and edges
  around a random rest (from another run: --student.begin RUN --freeze encoder --freeze-epochs 50)
- ImageNet mean and standard deviation for ImageNet weights; there, RGB in [0, 1]
- padding is void; there, background
- width .5, the network's own default; there .3 for memory, which maps that are pooled do not need
- Dice is a picture's, over its own classes; there, over the batch and all classes
- the first three features are averaged to stride 8 in stage 1: 4.5 M values a row instead of 32 M,
  1.8 MB as int8, and .9 MB for the logits of eleven classes
- four views of a picture are kept, drawn once; sizes from a quarter to twice as there, but a factor
  and its inverse equally likely
- the best student is that of the highest mIoU over all of the validation split, in order; there, of
  the lowest cross-entropy over a shuffled part of it

The logits are cached, so that the quality gate can judge them, and not distilled, as there: a
SoftKL(target="voc") in a recipe of your own reads them from the same cache.
"""

from dataclasses import replace

from stillroom.losses import CauchySchwarz, CrossEntropy, Dice, Focal
from stillroom.recipe import Augment, Data, Recipe, Run, Views
from stillroom.recipe_optimizer import Adam, CosineTail
from stillroom.students.pretrained import BackboneUNetStudent, FastLiteStudent
from stillroom.teachers.configs import RunTeacher

_CLASSES = 21
_TAPS = {"skip1": "f1", "skip2": "f2", "skip3": "f3", "skip4": "f4", "fused": "f5"}


def unet_fastlite_teacher() -> Recipe:
    """24.9 M parameters with VGG16, 43.9 M with ResNet50, on every mask."""
    return Recipe(
        name="unet-fastlite-teacher",
        data=Data(shards="shards/voc-512"),
        views=Views(count=4, scale=(0.5, 4.0), aspect=(0.54, 1.86)),
        student=BackboneUNetStudent(classes=_CLASSES, weights="imagenet"),
        terms=(CrossEntropy(weight=1.0), Dice(weight=0.0), Focal(weight=0.0)),
        freeze=("encoder",),
        freeze_epochs=100,
        augment=Augment(hsv=(0.1, 0.7, 0.3)),
        optimizer=Adam(lr=1e-4, nominal_batch=16, lr_limits=(1e-4, 1e-4), clip=0.0),
        schedule=CosineTail(),
        batch=2,
        micro_batch=2,
        epochs=300,
        run=Run(evaluate_every=5),
    )


def unet_fastlite_plain() -> Recipe:
    """1.7 M parameters on every mask."""
    return replace(
        unet_fastlite_teacher(),
        name="unet-fastlite-plain",
        student=FastLiteStudent(width=0.5, classes=_CLASSES),
        terms=(CrossEntropy(weight=0.5), Dice(weight=0.2)),
        freeze=(),
        freeze_epochs=None,
        epochs=200,
    )


def unet_fastlite() -> Recipe:
    """The same on the same masks and on five features of `unet-fastlite-teacher`."""
    features = tuple(
        CauchySchwarz(target=target, tap=tap, align="teacher", weight=0.06)
        for tap, target in _TAPS.items()
    )
    return replace(
        unet_fastlite_plain(),
        name="unet-fastlite",
        teachers=(
            RunTeacher(
                target="voc",
                path="runs/unet-fastlite-teacher",
                taps=(
                    ("f1", "f1", 8),
                    ("f2", "f2", 8),
                    ("f3", "f3", 8),
                    ("f4", "f4"),
                    ("f5", "f5"),
                ),
            ),
        ),
        # rounded to nearest: noise, though right on average, would bias a divergence
        codec={"voc": "logits8"} | dict.fromkeys(_TAPS.values(), "int8"),
        terms=(CrossEntropy(weight=0.5), *features, Dice(weight=0.2)),
    )
