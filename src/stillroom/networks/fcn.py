"""torchvision's FCN-ResNet50, the teacher of the system S1: 35,322,218 parameters of 21 classes."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from stillroom.networks.description import Classes, Triple, describe
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from stillroom.networks.taps import Network
from stillroom.networks.trunk import Trunk

VOC_WEIGHTS = "FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1"  # as torchvision names them
_STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True, slots=True, kw_only=True)
class FcnFields:
    """What describes an FCN-ResNet50: of a teacher, of a student, in `student.json`."""

    classes: Classes = 21  # channels of the logits; 1 for a binary task
    aux: bool = True  # the auxiliary head on layer3, as torchvision's weights have it
    mean: Triple = IMAGENET_MEAN  # of RGB in [0, 1], as the weights were trained
    std: Triple = IMAGENET_STD  # of RGB in [0, 1], as the weights were trained

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, without weights."""
        return describe("fcn", FcnFields, self)


class Fcn(Network):
    """A dilated ResNet50 and a small head; parameters have torchvision's own names.

    Taps: `layer1` has stride 4, `layer2` to `layer4` stride 8; with an auxiliary head `aux`, its
    logits at the size of the picture, as torchvision returns them.
    """

    def __init__(
        self, classes: int, aux: bool, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        from torchvision.models.segmentation import fcn_resnet50

        model: Any = fcn_resnet50(
            weights=None, weights_backbone=None, num_classes=classes, aux_loss=aux
        )
        self.normalise = Normalise(mean, std)
        self.backbone = Trunk(model.backbone.items(), {name: name for name in _STAGES})
        self.classifier: nn.Module = model.classifier
        self.aux_classifier: nn.Module | None = model.aux_classifier
        self.stride = 8
        self.taps = (*_STAGES, "aux") if aux else _STAGES

    def _run(self, image: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and features of a normalised picture; the auxiliary head runs if asked."""
        named = self.backbone(image)
        if "aux" in taps and self.aux_classifier is not None:
            named["aux"] = _enlarge(self.aux_classifier(named["layer3"]), image)
        return _enlarge(self.classifier(named["layer4"]), image), named


def _enlarge(logits: Tensor, image: Tensor) -> Tensor:
    return functional.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)
