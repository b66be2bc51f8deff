"""U-Net EfficientNet-B3 and a YOLOv9-E ONNX detector teach U-Net EfficientNet-B0: person masks at
640x640.

    stillroom shards coco:train2017,instances_train2017.json --categories person \\
        --val coco:val2017,instances_val2017.json --out shards/people-640 --size 640 640
    stillroom cache b3-b0-yolo
    stillroom train b3-b0-yolo --precision fp16
    stillroom evaluate runs/b3-b0-yolo

The features take about .30 MB a picture, a fortieth of half precision, the logits .08 MB; no
student could tell such features of another detector from float16 (docs/results.md).

Options, each as flags of the training; none needs another cache:
- light augmentation: LIGHT below in place of HEAVY, --augment.photometric .2 --augment.gamma 0
  --augment.hsv .06 .08 .08 --augment.blur 1.1 --augment.noise 0 --augment.jpeg None; heavy costs a
  reading thread some 26 ms a picture of 640x640
- mirrored pictures, where the audit of the cache allows them (check_cache.py CACHE b3-b0-yolo
  --audit): --augment.mirror
- the encoder in stages, the deepest block first, at .3 of the learning rate: --freeze
  encoder.blocks.6 encoder.blocks.5 encoder.blocks.4 encoder.blocks.3 encoder.blocks.2
  encoder.blocks.1 encoder.blocks.0 encoder --freeze-epochs 5 --unfreeze-every 3 --freeze-lr .3
- the encoder frozen for good: --freeze encoder --terms.4.tap decoder.1 (stride 8 too); with the tap
  in the encoder this is refused
- a balance that follows the scores: --distill-weight .3 --distill-fade 30 (distilled terms times
  .3, the labels' times .7; they fade once the student passes its teacher, for good 3 % above it)
- another temperature: --terms.0.temperature.kind linear, exponential, or constant with
  --terms.0.temperature.end None

Source: PINTO0309/human-instance-segmentation (MIT), its B3 -> B0 distillation with YOLO features;
teacher weights ternaus/people_segmentation 2020-09-23a: smp names after Lightning's `model.`, which
is dropped and said, and ImageNet mean and standard deviation. smp 0.1.2 (timm 0.1.20) has the names
and shapes of all 634 tensors of smp 0.6.

Departures, each a repair: the encoder trains (there, the feature term moved only a projection that
was thrown away; benchmarks/faults.py shows it); frozen BatchNorm does not drift, for what is frozen
stays in evaluation mode; KL is the sum over classes times T^2, a mean over valid pixels (there,
times T); no clamp on any term; a loss that is not finite stops the run; the teachers run once, not
every epoch, and on the clean picture: what they said stays while light changes; crowds are void
(there, left out); the temperature is a field. Augmentation keeps the strengths but draws each
change of its own (there, one of a group), and has no weather, CLAHE, RGB shift, downscaling, motion
or median blur. As there: weights, learning rate, hidden width, temperature 3 to 1, 50 epochs of
batches of 4, resizing that stretches. No score is claimed until it has been trained on the original
data.
"""

from stillroom.losses import BinaryCrossEntropy, Dice, FeatureMSE, LogitMSE, SoftKL, Temperature
from stillroom.recipe import Augment, Data, Recipe
from stillroom.recipe_optimizer import AdamW, Cosine
from stillroom.students.definitions import SmpStudent
from stillroom.teachers.configs import OnnxTeacher, SmpTeacher

# The original's strengths: brightness and contrast .3, gamma 80 to 120, HSV 20 of 180 and 30 and 20
# of 255 beside a jitter of .1 in hue, kernels of at most 7 (heavy) and 5 (light) pixels.
HEAVY = Augment(
    photometric=0.3,
    gamma=0.2,
    hsv=(0.1, 0.12, 0.08),
    blur=1.4,
    noise=0.03,
    jpeg=70,
    degraded=0.1,
)
LIGHT = Augment(photometric=0.2, hsv=(0.06, 0.08, 0.08), blur=1.1, degraded=0.1)


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
        augment=HEAVY,
        optimizer=AdamW(lr=1e-4, weight_decay=1e-4, clip=1.0),
        schedule=Cosine(final=0.01),
        batch=4,
        micro_batch=4,
        epochs=50,
    )
