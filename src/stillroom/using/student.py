"""A finished run's student, or its ONNX export, ready for use: pictures in, logits or a mask out.

student = stillroom.load_student("runs/NAME")
mask = student.mask(picture)  # RGB (h w 3), uint8 or float in [0, 1]; class indices (h w)
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stillroom.errors import UserError
from stillroom.metrics import num_classes
from stillroom.networks.build import Network
from stillroom.networks.finished_run import WEIGHTS, RunDescription, load_run, require_finished
from stillroom.pictures.decode import MAX_SIDE_PX
from stillroom.pictures.loader import image_tensor
from stillroom.pictures.prepare import Fit, Geometry
from stillroom.types import whole_box
from stillroom.using.resampling import logits_at, mask_at

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the picture
_Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE_PX)]


class _Geometry(TypedDict):
    height: _Side
    width: _Side
    fit: Fit


class _Pictures(TypedDict):
    path: str


class StudentDescription(RunDescription):
    """What `student.json` holds, as far as using a student takes it."""

    classes: list[str]
    regions: NotRequired[tuple[_Side, _Side] | None]  # cells (y, x) of a region's mask
    palette: NotRequired[list[tuple[int, int, int]]]
    geometry: _Geometry
    pictures: _Pictures
    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)]  # pictures of a forward pass
    recipe: NotRequired[str]
    step: NotRequired[int]
    score: NotRequired[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A student ready for use, in evaluation mode on the CPU; `run` is its folder or ONNX file."""

    run: Path
    network: Network
    about: StudentDescription

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels, that it was trained at."""
        return self.about["geometry"]["height"], self.about["geometry"]["width"]

    @property
    def regions(self) -> tuple[int, int] | None:
        """Cells (y, x) of a region's mask, where it looks at boxes."""
        return self.about.get("regions")

    @property
    def geometry(self) -> Geometry:
        """How a picture is brought to that size."""
        return Geometry(height=self.size[0], width=self.size[1], fit=self.about["geometry"]["fit"])

    @property
    def num_parameters(self) -> int:
        """Numbers that were trained."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def num_classes(self) -> int:
        """Classes that its logits tell apart."""
        return num_classes(self.channels)

    @property
    def channels(self) -> int:
        """Channels of its logits, which a BinaryUNet and a region network need not describe."""
        return self.about["network"].get("classes", 1 if self.regions is None else 3)

    @property
    def weights_bytes(self) -> int:
        """Size of the weights' file."""
        return (self.run / WEIGHTS).stat().st_size

    def to(self, device: str) -> "Trained":
        """Move the network; UserError for a device that it does not run on."""
        if device != "cpu" and (self.run.suffix == ".onnx" or not torch.cuda.is_available()):
            raise UserError(f"{self.run} does not run on {device} here", wanted="--device cpu")
        self.network.to(device)
        return self

    @torch.inference_mode()
    def small_logits(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], boxes: Sequence[Box] | None = None
    ) -> list[Float[Tensor, "k _ _"]]:
        """Return each picture's logits at the network's resolution, without padding; or those of a
        box of each, x0, y0, x1, y1 in pixels of the picture.

        UserError where boxes are given and not looked at, or the other way round.
        """
        if self.network.needs_boxes and boxes is None:
            raise UserError(
                "this student looks at boxes of a picture, and none are given",
                fix="--box X0 Y0 X1 Y1; in Python student.mask(picture, box)",
            )
        if boxes is not None and not self.network.needs_boxes:
            raise UserError("this student looks at whole pictures", fix="leave the boxes out")
        geometry = self.geometry
        placed = [np.array(geometry.place(Image.fromarray(image))) for image in images]
        device = self.network.normalise.mean.device
        batch = torch.stack([image_tensor(image) for image in placed]).to(device)
        insides = [geometry.inside(*image.shape[:2]) for image in images]
        if boxes is not None:
            seen = [_at(b, i, x) for b, i, x in zip(boxes, images, insides, strict=True)]
            return [*self.network(batch, torch.tensor(seen, device=device)).float().cpu()]
        return [
            one[:, y0:y1, x0:x1].float().cpu()
            for one, (x0, y0, x1, y1) in zip(self.network(batch), insides, strict=True)
        ]

    def logits(self, image: Shaped[np.ndarray, "h w 3"]) -> Float[Tensor, "k h w"]:
        """Return a picture's logits at its own size (k = 1 for a binary task).

        The picture is RGB, uint8, or float in [0, 1] (which is rounded to 8 bits). Raises
        UserError for anything else.
        """
        image = _eight_bit(image)
        return logits_at(self.small_logits([image])[0], image.shape[:2])

    def mask(
        self, image: Shaped[np.ndarray, "h w 3"], box: Box | None = None
    ) -> UInt8[np.ndarray, "h w"]:
        """Return a picture's class indices at its own size; pictures as above.

        Of a student of boxes those of a box x0, y0, x1, y1 (pixels), 0 outside it.
        """
        image = _eight_bit(image)
        if box is None:
            return mask_at(self.small_logits([image])[0], image.shape[:2])
        height, width = image.shape[:2]
        x0, y0, x1, y1 = (round(side) for side in box)
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            wanted = f"0 <= x0 < x1 <= {width}, 0 <= y0 < y1 <= {height}"
            raise UserError("the box is not one of the picture", found=box, wanted=wanted)
        mask = np.zeros((height, width), np.uint8)
        mask[y0:y1, x0:x1] = mask_at(self.small_logits([image], [box])[0], (y1 - y0, x1 - x0))
        return mask


def _at(box: Box, image: np.ndarray, inside: tuple[int, int, int, int]) -> list[float]:
    """Return a box of a picture where the picture lies, `inside`, as the network sees it."""
    left, top, right, bottom = inside
    across, down = (right - left) / image.shape[1], (bottom - top) / image.shape[0]
    x0, y0, x1, y1 = box
    return [left + x0 * across, top + y0 * down, left + x1 * across, top + y1 * down]


def _eight_bit(image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "f" or not (image.min() >= 0 and image.max() <= 1):
        raise UserError(
            "this is no picture",
            found=f"{image.dtype}, {image.min():.4g} to {image.max():.4g}",
            wanted="RGB (h w 3), uint8, or float in [0, 1]",
        )
    return (image * 255).round().astype(np.uint8)


def load_student(path: Path | str, code: str | None = None) -> Trained:
    """Load the student of a finished run (or of its `best/`), or an export of one (`.onnx`).

    `code` names the function that builds a network of your own, path/to/file.py:function. Raises
    UserError where the run is not finished, DamageError where the weights are not those of
    student.json.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        from stillroom.using.onnx_network import open_onnx

        network, about = open_onnx(path, StudentDescription)
        return Trained(run=path, network=network, about=about)
    require_finished(path)
    network, about = load_run(path, StudentDescription, code)
    return Trained(run=path, network=network.eval(), about=about)


@torch.no_grad()  # in inference mode convolutions are not counted
def flops(trained: Trained) -> int:
    """Return the floating point operations of one picture, a multiplication and an addition being
    two: those of convolutions and matrix products, as torch counts them.
    """
    with FlopCounterMode(display=False) as counter:
        trained.network.cpu()(torch.zeros(1, 3, *trained.size), whole_box(trained.size))
    return counter.get_total_flops()


@torch.inference_mode()
def milliseconds(trained: Trained, repeats: int = 30) -> float:
    """Return the median time of one picture (batch 1, fp32, CPU, torch's threads), after three
    rounds of warming up.
    """
    network, boxes = trained.network.cpu(), whole_box(trained.size)
    image = torch.rand(1, 3, *trained.size)
    return median(times_ms(lambda: network(image, boxes), repeats, 3))


def times_ms(function: Callable[[], object], rounds: int, warm_up: int) -> list[float]:
    """Return the milliseconds of each round, on a GPU too, after some of warming up."""
    times = []
    for _ in range(warm_up + rounds):
        began = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - began))
    return times[warm_up:]
