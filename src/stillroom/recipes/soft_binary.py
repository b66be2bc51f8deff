"""A binary U-Net teaches one of 1/253 of its size on pictures without labels, through its soft
answers alone: grey frames at 480x752.

    stillroom shards folders:IMAGES,MASKS --out shards/frames-labelled --size 480 752
           --mask-values 0:0 255:1
    stillroom train soft-binary-teacher
    stillroom shards unlabelled:FRAMES --out shards/frames --size 480 752 --val-share .1
    stillroom cache soft-binary
    stillroom train soft-binary
    stillroom evaluate runs/soft-binary --shards shards/frames-labelled

The score is the share of pixels of held-out frames on which student and teacher agree. Frames of
one video are alike: `--val-list FILE` holds out whole scenes. `history.csv` has a line for each
epoch. Any width and pictures in colour: `--student.width 16 --student.channels 3`.

Source: dtjessie/segment-distill (no licence stated). As there: BatchNorm on the input, widths 64
and 4, batches of 2 and 8, Adam 1e-4, the rate halved on a plateau of 4, an early end after 50 and
100 epochs without a better score, 100 and 200 epochs at most, the student's frames mirrored at
random, no temperature (`--terms.0.temperature.start 2`).

Departures, each a repair:
- answers are kept as logits in even steps of probability (.0077), the same for every frame, .09 MB
  each; there, as a picture stretched from a frame's smallest to its largest answer
- frames and answers are joined by name; there, by their order
- the loss is the KL divergence: the cross-entropy of soft answers, less what no student can undo
- the mirrored frame is a stored view with an answer of its own; there, the answer was mirrored
- validation is not mirrored, is drawn by hash, a list or a seed, and follows agreement or mIoU;
  there, it was the tail of a sorted video, and the loss
- a new teacher needs a new cache; there, the answers of the last one were used again in silence
- gradients are clipped to norm 1, for its last layers may die (all ReLU, two channels wide)
- the best student is kept; there, the last one took its place
- the teacher's frames are scaled and mirrored; there, also turned by up to 10 degrees and upside
  down
- mIoU is that of all pixels; there, a mean of ratios of single pixels
"""

from dataclasses import replace

from stillroom.losses import BinaryCrossEntropy, SoftKL
from stillroom.recipe import Data, Recipe, Views
from stillroom.recipe_optimizer import Adam, Constant, Plateau
from stillroom.students.definitions import BinaryUNetStudent
from stillroom.teachers.configs import RunTeacher


def soft_binary_teacher() -> Recipe:
    """31 M parameters on every mask."""
    return Recipe(
        name="soft-binary-teacher",
        data=Data(shards="shards/frames-labelled"),
        views=Views(count=4, scale=(0.8, 1.25)),
        student=BinaryUNetStudent(width=64),
        terms=(BinaryCrossEntropy(weight=1.0),),
        optimizer=Adam(lr=1e-4, clip=1.0),
        schedule=Constant(),
        early_stopping=50,
        batch=2,
        micro_batch=2,
        epochs=100,
    )


def soft_binary() -> Recipe:
    """122 k parameters on what `soft-binary-teacher` says of frames without labels."""
    return replace(
        soft_binary_teacher(),
        name="soft-binary",
        data=Data(shards="shards/frames"),
        teachers=(RunTeacher(target="mask", path="runs/soft-binary-teacher"),),
        views=Views(count=2, scale=(1.0, 1.0), aspect=(1.0, 1.0), mirror=1.0),
        codec={"mask": "logits8"},
        student=BinaryUNetStudent(width=4),
        terms=(SoftKL(target="mask"),),
        schedule=Plateau(factor=0.5, patience=4),
        early_stopping=100,
        batch=8,
        micro_batch=8,
        epochs=200,
    )
