"""U-Net EfficientNet-B3 with region heads teaches the same with EfficientNet-B0: one box of a
picture in three classes, background, the box's own person and other people.

    stillroom shards coco:train2017,instances_train2017.json --categories person \\
        --val coco:val2017,instances_val2017.json --out shards/people-640 --size 640 640
    stillroom train b3-b0-hierarchical-teacher
    stillroom cache b3-b0-hierarchical
    stillroom train b3-b0-hierarchical-plain
    stillroom train b3-b0-hierarchical
    stillroom evaluate runs/b3-b0-hierarchical

A row is a picture and one of its boxes: at most ten a picture, the largest, of 16 pixels or more
each way; a picture lies on disk once. Labels are made of the instances' run lengths. Any other
instance is `other`, crowds are void. The logits of a region are 58 KB a row as logits8, the two
heads .15 MB as float16.

The teacher's U-Net is that of ternaus/people_segmentation 2020-09-23a, frozen; without the file
`--student.unet None --student.weights imagenet --freeze`. Smaller networks for small pictures:
`--student.cells 16 12 --student.channels 32 --student.base 8 --data.regions 32 24`, the same for
teacher and students.

Source: PINTO0309/human-instance-segmentation (MIT), its hierarchical region segmentation. As there:
heads, gate, losses and their weights, T 4, alpha .7, AdamW 1e-4, cosine to 1e-6, batches of 2, 100
epochs, the best student by target IoU.

Departures, each a repair:
- KL is a mean over cells times T^2; there, `batchmean` divides the sum over 19,200 cells by regions
- a teacher's run is loaded strictly; there, layers that did not fit stayed random, in silence
- one normalisation, stored with the network; there, (x - .5) / .5 for a U-Net trained with
  ImageNet's, and /255 where a batch looked like bytes
- boxes are sampled at the centres of cells, four samples each; there, at corners
- the student's encoder begins from ImageNet; there, from random weights
- running class weights come from counts over all ranks and are in the checkpoint; a class that a
  step lacks keeps its weight; both weighted cross-entropies are divided by pixels, where there that
  of the foreground was divided by the sum of their weights
- void and crowds count nowhere; a region whose target cannot be seen counts in no target IoU
- the bilinear doubling of the coarse foreground, contours, distance maps and their losses, options
  there, are left out; no clamp on any term; colour changes as HEAVY of b3-b0-yolo, and no mirror
  (there, half of the pictures): what a teacher says of a mirrored box is not in its cache
"""

from dataclasses import replace

from stillroom.losses import (
    CrossEntropy,
    Dice,
    HeadAgreement,
    RunningCrossEntropy,
    SoftKL,
    Temperature,
)
from stillroom.recipe import Data, Recipe
from stillroom.recipe_optimizer import AdamW, Cosine
from stillroom.recipes.b3_b0 import HEAVY
from stillroom.students.definitions import RegionStudent
from stillroom.teachers.configs import RunTeacher

_WARM = Temperature(start=4.0)
_FOREGROUND = (0, 1, 1)  # background, target, other as background and foreground
_WHOSE = (255, 0, 1)  # of foreground alone
_LABELS = (
    RunningCrossEntropy(output="bg_fg", relabel=_FOREGROUND, boost=(1.0, 1.2), weight=1.5),
    RunningCrossEntropy(
        output="target", relabel=_WHOSE, boost=(1.0, 1.0), begin_at_one=False, weight=1.5
    ),
    CrossEntropy(weight=1.0),
    Dice(weight=1.0, only=(1,), smooth=1e-6),
    HeadAgreement(output="bg_fg", relabel=_FOREGROUND, weight=0.3),
)


def b3_b0_hierarchical_teacher() -> Recipe:
    """The U-Net's 13.2 M parameters frozen, the heads' 13.0 M trained."""
    return replace(
        b3_b0_hierarchical_plain(),
        name="b3-b0-hierarchical-teacher",
        student=RegionStudent(encoder="timm-efficientnet-b3", unet="models/2020-09-23a.pth"),
        freeze=("unet",),
    )


def b3_b0_hierarchical_plain() -> Recipe:
    """A U-Net of 6.3 M parameters and the same heads, on labels alone."""
    return Recipe(
        name="b3-b0-hierarchical-plain",
        data=Data(shards="shards/people-640", regions=(160, 120)),
        student=RegionStudent(encoder="timm-efficientnet-b0", weights="imagenet"),
        terms=_LABELS,
        augment=HEAVY,
        optimizer=AdamW(lr=1e-4, weight_decay=0.01, clip=1.0),
        schedule=Cosine(final=0.01),
        batch=2,
        micro_batch=2,
        epochs=100,
    )


def b3_b0_hierarchical() -> Recipe:
    """The same, and what the teacher said of each box: classes, foreground and whose."""
    return replace(
        b3_b0_hierarchical_plain(),
        name="b3-b0-hierarchical",
        teachers=(
            RunTeacher(
                target="region",
                path="runs/b3-b0-hierarchical-teacher",
                taps=(("bg_fg", "bg_fg"), ("whose", "target")),
            ),
        ),
        codec={"region": "logits8", "bg_fg": "float16", "whose": "float16"},
        terms=(
            *_LABELS,
            SoftKL(target="region", temperature=_WARM),
            SoftKL(target="bg_fg", output="bg_fg", weight=0.3, temperature=_WARM),
            SoftKL(target="whose", output="target", weight=0.3, temperature=_WARM),
        ),
        distill_weight=0.7,
    )
