"""What a teacher is, as plain values: which file, which tensor, which preprocessing.

Stage 2 imports this module to recognise a cache; what runs a teacher is imported inside `build()`
only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import UserError
from stillroom.jsonfile import file_sha256
from stillroom.networks.description import Triple
from stillroom.networks.fcn import FcnFields
from stillroom.networks.finished_run import read_run
from stillroom.networks.smp import SmpFields
from stillroom.teachers.fields import (
    Taps,
    check_normalisation,
    check_taps,
    kinds,
    preprocessing,
    tensors,
)
from stillroom.teachers.files import MissingTeacherError as MissingTeacherError
from stillroom.teachers.files import existing, file_inside, finished
from stillroom.teachers.protocol import Recorded
from stillroom.types import Kind

if TYPE_CHECKING:
    from stillroom.teachers.onnx import BuiltOnnxTeacher
    from stillroom.teachers.torch import BuiltTorchTeacher


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxTeacher:
    """Any ONNX detector or segmenter; one of its tensors becomes one target, others may be more.

    Preprocessing, in this order: RGB in [0, 1], resized to `size`, channels reordered, times
    `scale`, minus `mean`, divided by `std`. `mean` and `std` are in scaled units and in the
    network's channel order. BGR 0..255 is `channels="BGR", scale=255.0`; [-1, 1] is `mean=(.5, .5,
    .5), std=(.5, .5, .5)`.
    """

    target: str  # the name under which the tensor is cached
    path: str  # the .onnx file; external data must lie in the same folder
    tensor: str | None = None  # a graph output or any inner 4-D tensor; None = the only output
    kind: Literal["logits", "probabilities", "features"]  # probabilities are stored as logits
    size: tuple[int, int] | None = None  # (h, w) the network sees, px; None = the picture's
    channels: Literal["RGB", "BGR"] = "RGB"  # the order that the network expects
    scale: float = 1.0  # what RGB in [0, 1] is multiplied by first
    mean: Triple = (0.0, 0.0, 0.0)  # subtracted after scaling, scaled units, network's order
    std: Triple = (1.0, 1.0, 1.0)  # divided by last, scaled units, network's order
    # more of the same pass, kept as features: (target, tensor), or (target, tensor, stride):
    # averaged to so many pixels of the picture a cell
    tensors: Taps = ()

    def __post_init__(self) -> None:
        check_taps(self.target, self.tensors)
        check_normalisation(self.mean, self.std, self.scale)
        if self.size is not None and min(self.size) < 1:
            raise UserError("a teacher's size must be positive", found=self.size, wanted="(h, w)")

    @property
    def targets(self) -> dict[str, Kind]:
        """Return the kind of each target as it is stored."""
        kind: Kind = "features" if self.kind == "features" else "logits"
        return {**kinds(self.target, self.tensors), self.target: kind}

    def identity(self, with_files: bool = True, recorded: Recorded = None) -> dict[str, Any]:
        """Return what makes this teacher's words its own; `with_files` adds the files' sha256.

        Without, no file need exist, and the answer is a subset of the answer with. Which files hold
        external data onnx finds out; with `recorded`, a cache of the same ONNX file has the names
        and onnx is not imported. Raises MissingTeacherError, and UserError where external data lies
        outside the network's folder.
        """
        identity: dict[str, Any] = {
            "class": "OnnxTeacher",
            "targets": {self.target: self.tensor, **tensors(self.tensors)},
            "kind": self.kind,
            "preprocessing": preprocessing(
                self.channels, self.scale, self.mean, self.std, size=self.size and list(self.size)
            ),
            "precision": "float32",
        }
        if with_files:
            path = existing(self.path)
            sha256 = identity["onnx_sha256"] = file_sha256(path, links=True)
            names = _external_names(path, sha256, recorded)
            files = {name: file_inside(path.parent, name) for name in sorted(names)}
            identity["external_data_sha256"] = {n: file_sha256(f) for n, f in files.items()}
        return identity

    def build(self, device: str) -> "BuiltOnnxTeacher":
        """Open the network on "cpu", "cuda" or "cuda:N"; raises UserError for what cannot run."""
        from stillroom.teachers.onnx import BuiltOnnxTeacher

        return BuiltOnnxTeacher(self, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmpTeacher(SmpFields):
    """An smp network with weights from a file; its logits and any of its taps are targets."""

    target: str  # the name under which the logits are cached
    path: str  # weights: safetensors or a torch file, bare or in state_dict/model_state_dict
    # (target, tap), e.g. ("feature", "encoder.3"), or (target, tap, stride): averaged to so many
    # pixels of the picture a cell
    taps: Taps = ()

    def __post_init__(self) -> None:
        check_taps(self.target, self.taps)
        check_normalisation(self.mean, self.std)

    @property
    def targets(self) -> dict[str, Kind]:
        """Return the kind of each target."""
        return kinds(self.target, self.taps)

    def identity(self, with_files: bool = True, recorded: Recorded = None) -> dict[str, Any]:
        """Return what makes this teacher's words its own; `with_files` adds the weights' sha256.

        Without, no file need exist, and the answer is a subset of the answer with.
        """
        identity: dict[str, Any] = {
            "class": "SmpTeacher",
            "targets": {self.target: "logits", **tensors(self.taps)},
            "architecture": self.architecture(),
            "precision": "float32",
        }
        if with_files:
            identity["weights_sha256"] = file_sha256(existing(self.path), links=True)
        return identity

    def build(self, device: str) -> "BuiltTorchTeacher":
        """Load the weights strictly on "cpu", "cuda" or "cuda:N"; raises UserError with the fix."""
        from stillroom.teachers.torch import build_smp

        return build_smp(self, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class FcnTeacher(FcnFields):
    """torchvision's FCN-ResNet50; its logits and any of its taps are targets."""

    target: str  # the name under which the logits are cached
    # "voc" (download: trained on COCO with the 21 classes of VOC), a file of the whole network with
    # torchvision's names; None: random, for tests
    weights: str | None = "voc"
    taps: Taps = ()  # (target, tap) pairs, of layer1 to layer4

    def __post_init__(self) -> None:
        check_taps(self.target, self.taps)
        check_normalisation(self.mean, self.std)

    @property
    def targets(self) -> dict[str, Kind]:
        """Return the kind of each target."""
        return kinds(self.target, self.taps)

    def identity(self, with_files: bool = True, recorded: Recorded = None) -> dict[str, Any]:
        """Return what makes this teacher's words its own; `with_files` adds the weights' sha256.

        Without, no file need exist, and the answer is a subset of the answer with. Of weights that
        are downloaded the built network says the sha256.
        """
        has_file = self.weights not in (None, "voc")
        identity: dict[str, Any] = {
            "class": "FcnTeacher",
            "targets": {self.target: "logits", **tensors(self.taps)},
            "architecture": self.architecture(),
            "weights": "file" if has_file else self.weights,
            "precision": "float32",
        }
        if with_files and self.weights is not None and has_file:
            path = existing(self.weights, "weights")
            identity["weights_sha256"] = file_sha256(path, links=True)
        return identity

    def build(self, device: str) -> "BuiltTorchTeacher":
        """Return the network with its weights; raises UserError with the fix."""
        from stillroom.teachers.torch import build_fcn

        return build_fcn(self, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTeacher:
    """A finished run of ours: `student.safetensors` and `student.json` of its folder."""

    target: str  # the name under which the logits are cached
    path: str  # the run's folder, runs/NAME
    # path/to/file.py:function that builds its network, where that is code of your own
    code: str | None = None
    # (target, tap), e.g. ("feature", "encoder.3"), or (target, tap, stride): averaged to so many
    # pixels of the picture a cell
    taps: Taps = ()

    def __post_init__(self) -> None:
        check_taps(self.target, self.taps)

    @property
    def targets(self) -> dict[str, Kind]:
        """Return the kind of each target."""
        return kinds(self.target, self.taps)

    def identity(self, with_files: bool = True, recorded: Recorded = None) -> dict[str, Any]:
        """Return what makes this teacher's words its own.

        `with_files` adds architecture and the weights' sha256. Without, no file need exist, and the
        answer is a subset of the answer with.
        """
        identity: dict[str, Any] = {
            "class": "RunTeacher",
            "targets": {self.target: "logits", **tensors(self.taps)},
            "precision": "float32",
        }
        if with_files:
            about = read_run(finished(self.path))
            identity["architecture"] = about["network"]
            identity["weights_sha256"] = about["weights_sha256"]
            if self.code is not None:
                code = existing(self.code.rpartition(":")[0], "code")
                identity["code_sha256"] = file_sha256(code, links=True)
        return identity

    def build(self, device: str) -> "BuiltTorchTeacher":
        """Load the run's student, on "cpu", "cuda" or "cuda:N"; raises UserError with the fix."""
        from stillroom.teachers.torch import build_run

        return build_run(self, device)


def _external_names(path: Path, sha256: str, recorded: Recorded) -> Iterable[str]:
    if recorded is None:
        from stillroom.teachers.onnx_file import external_names, load_graph

        return external_names(load_graph(path))
    same = (r.get("external_data_sha256", ()) for r in recorded if r.get("onnx_sha256") == sha256)
    return next(same, ())  # no cache has this network, so none fits whatever its files are
