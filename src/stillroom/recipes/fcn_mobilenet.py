"""FCN-ResNet50 teaches a light DeepLabV3 on MobileNetV3-Large: VOC 2012 at 256x256, three students
over one set of shards.

    stillroom shards voc2012:PATH --out shards/voc12-256 --size 256 256 --fit letterbox
    stillroom train fcn-mobilenet-plain         labels alone
    stillroom cache fcn-mobilenet-response    the cache of both that follow
    stillroom train fcn-mobilenet-response      labels and the teacher's logits
    stillroom train fcn-mobilenet-feature       labels, its logits' and features' direction
    stillroom evaluate runs/fcn-mobilenet-response

A PATH where VOC 2012 lies already: voc:PATH. The teacher is torchvision's, trained on COCO with
VOC's classes (a download, or `--teachers.0.weights FILE`); for other pictures one of your own:

    stillroom train fcn-mobilenet-teacher --student.classes N
    ... --teachers.0.weights runs/fcn-mobilenet-teacher/student.safetensors --teachers.0.classes N

Source: a public university exercise without a licence. As there: classes weighted by 1 / pixels;
response .5 KL at temperature 2 + .5 cross-entropy; feature .1 of the cosine of each of four layers
and .5 of the logits'; Adam 1e-4, halved on a plateau of 5; 50 epochs of batches of 16; no
augmentation and no weight decay, which its text promises: `--views.count 4` and
`--optimizer.weight-decay 1e-5`.

Departures, each a repair:
- KL is the sum over classes times T^2, a mean over pixels; there, the sum over all 65,536 of them
- void is not labelled and padding not distilled; there, both counted, in scores too
- four aligners beside each other, trained; there, a chain of four that nothing trained
- the cosine is that of each cell and pixel, so that it knows where; there, one number of a whole
  picture (`--terms.1.flatten` and so on)
- the layers are averaged to the student's grid in stage 1: .98 M values a row instead of 4.7 M,
  .8 MB as int8, and 1.2 MB for the logits of eleven classes
- the rate of all three follows the mIoU of validation; there, two followed a loss of validation,
  one that of training
- the backbone begins from ImageNet; there, from a DeepLabV3 that had seen VOC's labels
  (`--student.weights voc`), so that its "without" had been taught
- pictures are letterboxed; there, stretched
- class pixels are counted once and kept beside the shards; there, in every run
- mIoU is the data set's; there, a mean of pictures
"""

from dataclasses import replace

from stillroom.losses import CrossEntropy, FeatureCosine, LogitCosine, SoftKL, Temperature
from stillroom.recipe import Data, Recipe
from stillroom.recipe_optimizer import Adam, Plateau
from stillroom.students.pretrained import DeepLabV3LiteStudent, FcnStudent
from stillroom.teachers.configs import FcnTeacher

_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_TEACHER = FcnTeacher(target="voc", taps=tuple((layer, layer, 16) for layer in _LAYERS))
# logits8 would bend the direction of confident logits: cosine off by .015 where they span 30
_CODEC = {"voc": "float16"} | dict.fromkeys(_LAYERS, "int8")
_LABELS = CrossEntropy(weight=1.0, class_weights="balanced")


def fcn_mobilenet_plain() -> Recipe:
    """3.8 M parameters on every mask."""
    return Recipe(
        name="fcn-mobilenet-plain",
        data=Data(shards="shards/voc12-256"),
        student=DeepLabV3LiteStudent(weights="imagenet"),
        terms=(_LABELS,),
        optimizer=Adam(lr=1e-4, clip=0.0),
        schedule=Plateau(factor=0.5, patience=5),
        batch=16,
        micro_batch=16,
        epochs=50,
    )


def fcn_mobilenet_response() -> Recipe:
    """The same, and what the teacher answered."""
    return replace(
        fcn_mobilenet_plain(),
        name="fcn-mobilenet-response",
        teachers=(_TEACHER,),
        codec=_CODEC,
        terms=(_LABELS, SoftKL(target="voc", temperature=Temperature(start=2.0))),
        distill_weight=0.5,
    )


def fcn_mobilenet_feature() -> Recipe:
    """The same, and in which direction the teacher's layers and its answer point."""
    layers = tuple(
        FeatureCosine(target=layer, tap="backbone", hidden=None, weight=0.1) for layer in _LAYERS
    )
    return replace(
        fcn_mobilenet_response(),
        name="fcn-mobilenet-feature",
        terms=(_LABELS, *layers, LogitCosine(target="voc", weight=0.5)),
        distill_weight=None,
    )


def fcn_mobilenet_teacher() -> Recipe:
    """A teacher of your own on every mask: 35.3 M parameters, with torchvision's auxiliary head."""
    return replace(
        fcn_mobilenet_plain(),
        name="fcn-mobilenet-teacher",
        student=FcnStudent(weights="imagenet"),
        terms=(_LABELS, replace(_LABELS, output="aux", weight=0.5)),
    )
