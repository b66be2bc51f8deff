"""Teachers of your own, as plain values: any module, any timm model, targets in files.

As in `configs`, what runs them is imported inside `build()` only.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import UserError
from stillroom.jsonfile import digest, file_sha256
from stillroom.networks.description import Triple
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD
from stillroom.teachers.fields import (
    Taps,
    check_normalisation,
    check_taps,
    check_target,
    kinds,
    preprocessing,
    tensors,
)
from stillroom.teachers.files import existing, target_files
from stillroom.teachers.protocol import Recorded
from stillroom.types import Kind

if TYPE_CHECKING:
    from stillroom.teachers.target_files import BuiltFileTeacher
    from stillroom.teachers.torch import BuiltTorchTeacher


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchTeacher:
    """Any `nn.Module` of your own: its logits and the outputs of its modules are targets.

    It returns logits (b k y x), a dict with them under `out`, or a tuple that begins with them.
    Preprocessing, in this order: RGB in [0, 1], channels reordered, times `scale`, minus `mean`,
    divided by `std`. The factory's file is part of the identity; what that file imports is not, but
    the weights that stand in the network are.
    """

    factory: str  # path/to/file.py:function, without arguments; it returns the nn.Module
    # safetensors or a torch file, loaded strictly; None = as the factory leaves them
    weights: str | None = None
    target: str | None  # the name under which the logits are cached; None = not kept
    # kept as features, maps (b c y x): (target, name of a module or in the network's dict), or with
    # a stride: averaged to so many pixels of the picture a cell
    outputs: Taps = ()
    mean: Triple = IMAGENET_MEAN  # subtracted after scaling, scaled units, network's order
    std: Triple = IMAGENET_STD  # divided by last, scaled units, network's order
    channels: Literal["RGB", "BGR"] = "RGB"  # the order that the network expects
    scale: float = 1.0  # what RGB in [0, 1] is multiplied by first

    def __post_init__(self) -> None:
        check_taps(self.target, self.outputs)
        check_normalisation(self.mean, self.std, self.scale)
        if not all(self.factory.rpartition(":")):
            raise UserError(
                "no such factory", found=repr(self.factory), wanted="path/to/file.py:function"
            )

    @property
    def targets(self) -> dict[str, Kind]:
        """Return the kind of each target."""
        return kinds(self.target, self.outputs)

    def identity(self, with_files: bool = True, recorded: Recorded = None) -> dict[str, Any]:
        """Return what makes this teacher's words its own; `with_files` adds the sha256 of the
        factory's file and of the weights.

        Nothing of the file is run. Without files, the answer is a subset of the answer with.
        """
        path, _, function = self.factory.rpartition(":")
        identity: dict[str, Any] = {
            "class": "TorchTeacher",
            # None: what it returns
            "targets": dict.fromkeys(self.targets) | tensors(self.outputs),
            "function": function,
            "preprocessing": preprocessing(self.channels, self.scale, self.mean, self.std),
            "precision": "float32",
        }
        if with_files:
            identity["factory_sha256"] = file_sha256(existing(path, "factory"), links=True)
            identity["weights_sha256"] = _weights_sha256(self.weights)
        return identity

    def build(self, device: str) -> "BuiltTorchTeacher":
        """Call the factory and load the weights strictly; raises UserError with the fix."""
        from stillroom.teachers.torch import build_own

        return build_own(self, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmTeacher:
    """Any timm model as a teacher of features, ViTs included: their tokens are laid out as a grid.

    Pictures come in as RGB, minus `mean`, divided by `std`.
    """

    model: str  # timm's name of it, e.g. vit_small_patch14_dinov2.lvd142m
    # (target, number): of timm's intermediate features (blocks of a ViT, stages of a CNN) the
    # number-th from 0, or from the end: -1 is the last; or (target, number, stride): averaged to so
    # many pixels of the picture a cell
    taps: tuple[tuple[str, int] | tuple[str, int, int], ...] = (("feature", -1),)
    # a file of timm's names, safetensors or torch; "pretrained" downloads; None: random, for tests
    weights: str | None = None
    # (h, w) that the network sees, px; None = the picture's; ViTs of fixed position embeddings have
    # them resampled
    size: tuple[int, int] | None = None
    norm: bool = True  # a ViT's last normalisation on every tap
    mean: Triple | None = None  # of RGB in [0, 1]; None = the model's own
    std: Triple | None = None  # of RGB in [0, 1]; None = the model's own

    def __post_init__(self) -> None:
        check_taps(None, self.taps)
        check_normalisation(self.mean or IMAGENET_MEAN, self.std or IMAGENET_STD)
        if self.size is not None and min(self.size) < 1:
            raise UserError("a teacher's size must be positive", found=self.size, wanted="(h, w)")

    @property
    def targets(self) -> dict[str, Kind]:
        """Return the kind of each target."""
        return kinds(None, self.taps)

    def identity(self, with_files: bool = True, recorded: Recorded = None) -> dict[str, Any]:
        """Return what makes these features their own; `with_files` adds the weights' sha256.

        Without, no file need exist, and the answer is a subset of the answer with.
        """
        identity: dict[str, Any] = {
            "class": "TimmTeacher",
            "model": self.model,
            "targets": tensors(self.taps),
            "weights": "file" if self._has_file else self.weights,
            "preprocessing": {
                name: None if value is None else list(value)
                for name, value in (("size", self.size), ("mean", self.mean), ("std", self.std))
            },
            "norm": self.norm,
            "precision": "float32",
        }
        if with_files:
            identity["weights_sha256"] = _weights_sha256(self.weights if self._has_file else None)
        return identity

    def build(self, device: str) -> "BuiltTorchTeacher":
        """Return the model with its weights; raises UserError with the fix."""
        from stillroom.teachers.timm import build_timm

        return build_timm(self, device)

    @property
    def _has_file(self) -> bool:
        return self.weights not in (None, "pretrained")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTeacher:
    """Targets that lie in files already, one a picture: masks, soft labels, another's features.

    The file of a picture is `<folder>/<key><suffix>`, made for the picture as it is packed: an
    array (c y x), or (y x) for one channel; .safetensors holds one tensor, .png a grey picture of
    8 or 16 bits. Logits and probabilities are brought to the size of the picture, bilinearly.
    """

    target: str  # the name under which they are cached
    folder: str  # of the files; it may be a link, what lies in it may not
    # probabilities are stored as logits (grey of a PNG: 0 to its largest value is 0 to 1); so is a
    # mask: class numbers, 255 = void, where every class is equally likely
    kind: Literal["logits", "probabilities", "features", "mask"]
    suffix: Literal[".npy", ".safetensors", ".png"] = ".npy"  # of the files
    classes: int | None = None  # of a mask: channels of its logits; 1 for a binary task
    confidence: float = 0.98  # of a mask: the probability of the class that it names

    def __post_init__(self) -> None:
        check_target(self.target)
        if self.suffix == ".png" and self.kind in ("logits", "features"):
            raise UserError(f"a PNG holds no {self.kind}", wanted="probabilities or a mask")
        if (self.kind == "mask") != (self.classes is not None):
            raise UserError("a mask needs --teachers.N.classes, and nothing else does")
        if self.classes is not None and not 1 <= self.classes <= 255:
            raise UserError("no such number of classes", found=self.classes, wanted="1 to 255")
        if not 1 / max(2, self.classes or 2) < self.confidence < 1:
            raise UserError(
                "no such confidence", found=self.confidence, wanted="above chance, below 1"
            )

    @property
    def targets(self) -> dict[str, Kind]:
        """Return the kind of each target as it is stored."""
        return {self.target: "features" if self.kind == "features" else "logits"}

    def identity(self, with_files: bool = True, recorded: Recorded = None) -> dict[str, Any]:
        """Return what makes these targets their own; `with_files` adds the sha256 of the names and
        contents of all files, each of which is read once.

        Without, the answer is a subset of the answer with.
        """
        identity: dict[str, Any] = {
            "class": "FileTeacher",
            "targets": {self.target: self.suffix},
            "kind": self.kind,
            "classes": self.classes,
            "confidence": None if self.classes is None else self.confidence,
        }
        if with_files:
            files = target_files(self.folder, self.suffix)
            sums = {key: file_sha256(path) for key, path in files.items()}
            identity["files_sha256"] = digest({"files": sums})
        return identity

    def build(self, device: str) -> "BuiltFileTeacher":
        """Find the files; raises UserError where there are none."""
        from stillroom.teachers.target_files import BuiltFileTeacher

        return BuiltFileTeacher(self, device)


def _weights_sha256(path: str | None) -> str | None:
    return None if path is None else file_sha256(existing(path, "weights"), links=True)
