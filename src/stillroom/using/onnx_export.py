"""A student as ONNX files that were compared with PyTorch before they got their names, with a card.

The network alone is exported, with its normalisation and without any projection: RGB in [0, 1] in,
logits out.
"""

import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.errors import UserError, first_line
from stillroom.metrics import miou, predict
from stillroom.networks.torch_network import TorchNetwork
from stillroom.pictures.dataset import PictureSet
from stillroom.pictures.decode import MAX_SIDE_PX, PADDING_GREY
from stillroom.pictures.loader import box_tensor, image_tensor
from stillroom.types import whole_box
from stillroom.using.evaluation import confusion_of
from stillroom.using.low_precision import to_fp16, to_int8
from stillroom.using.model_card import write_card
from stillroom.using.onnx_network import BOXES, IMAGES, LOGITS, OnnxNetwork
from stillroom.using.student import Trained
from stillroom.using.student_rows import places, read

# of logits, in parts of the largest where that is above 1 (PyTorch's own float32 against float64:
# 4e-5 at 128 px, 1.2e-4 at 256 px, of 14); of pixels' classes
MAX_DIFFERENCE, MIN_AGREEMENT = 1e-4, 0.9999
_CHECKED, _CALIBRATED = 16, 64  # pictures
_CARD = "card.md"

Sample = tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 4"] | None]  # a picture, and its box


def export(
    trained: Trained,
    pictures: PictureSet,
    out: Path,
    *,
    fp16: bool = False,
    int8: bool = False,
    pth: bool = False,
) -> dict[str, str]:
    """Write `student.onnx`, what else is wanted and `card.md` into the folder `out`; return what is
    to be said of each file, by name.

    All files or none: UserError where the export is not the network on pictures of the shards.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
        full = Path(aside) / "student.onnx"
        found = {full.name: _export_checked(trained, pictures, full)}
        if fp16:
            to_fp16(full, Path(aside) / "student.fp16.onnx")
        if int8:
            some = samples(trained, pictures, "train", _CALIBRATED)
            to_int8(full, Path(aside) / "student.int8.onnx", map(_by_name, some))
        if fp16 or int8:
            some, before = samples(trained, pictures, "val", _CHECKED), _miou(trained, pictures)
            for path in sorted(Path(aside).glob("student.*.onnx")):
                found[path.name] = _beside(trained, pictures, path, some, before)
        if pth:
            torch.save(plain_weights(trained), Path(aside) / "student.pth")
            found["student.pth"] = "a bare state dict"
        write_card(trained, pictures, Path(aside) / _CARD, found)
        out.mkdir(exist_ok=True)
        for name in [*found, _CARD]:
            (Path(aside) / name).replace(out / name)
    return found


def plain_weights(trained: Trained) -> dict[str, Tensor]:
    """Return the state dict that the network's own library or the user's own module loads."""
    network = trained.network
    return (network.module if isinstance(network, TorchNetwork) else network).state_dict()


def samples(
    trained: Trained,
    pictures: PictureSet,
    split: str,
    number: int,
    size: tuple[int, int] | None = None,
) -> list[Sample]:
    """Return up to `number` pictures from all over a split (of both where it has none) at `size`,
    default the network's own, with boxes where the network takes them.
    """
    some = split if pictures.shard_ids(split) else None
    known = places(trained, pictures, some)
    found: list[Sample] = []
    for place in known[:: max(1, len(known) // number)][:number]:
        picture = read(trained, pictures, place, size)
        found.append((image_tensor(picture.image)[None], box_tensor([picture])))
    return found


def _by_name(sample: Sample) -> dict[str, Any]:
    named = dict(zip((IMAGES, BOXES), sample, strict=True))
    return {name: value.numpy() for name, value in named.items() if value is not None}


def _export_checked(trained: Trained, pictures: PictureSet, path: Path) -> str:
    """Export and compare, with a free size where that works; return what was found."""
    try:
        _write(trained, path, is_free=True)
        found = _check(trained, pictures, path, is_free=True)
        return f"{found}; any batch, any multiple of {trained.network.stride} px"
    except Exception as error:  # the exporter's errors have no type in common
        reason = first_line(error)[:300]
    try:
        _write(trained, path, is_free=False)
    except Exception as error:
        raise UserError(
            "torch cannot export this network",
            found=first_line(error)[:300],
            wanted="a network without branches that depend on values",
        ) from error
    found = _check(trained, pictures, path, is_free=False)
    return f"{found}; any batch, {trained.size[0]} x {trained.size[1]} px only ({reason})"


def _write(trained: Trained, path: Path, is_free: bool) -> None:
    """Write a network in ONNX with its metadata; example pictures of the smallest free size."""
    network, batch = trained.network.cpu(), torch.export.Dim("batch")
    size, dims = trained.size, {0: batch}
    if is_free:
        height, width = (min(side, max(64, 2 * network.stride)) for side in size)
        size = (height, width)
        for axis, name in ((2, "h"), (3, "w")):
            steps = torch.export.Dim(name, min=1, max=MAX_SIDE_PX // network.stride)
            dims[axis] = network.stride * steps if network.stride > 1 else steps
    arguments: tuple[Tensor, ...] = (torch.rand(2, 3, *size),)
    shapes: tuple[dict[int, Any], ...] = (dims,)
    if network.needs_boxes:
        arguments, shapes = (*arguments, whole_box(size).repeat(2, 1)), (dims, {0: batch})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own making
        program = torch.onnx.export(
            network,
            arguments,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[IMAGES, BOXES][: len(arguments)],
            output_names=[LOGITS],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata(trained))
    onnx.save(model, path)


def metadata(trained: Trained) -> dict[str, str]:
    """Return what an export says of itself, each value as JSON: what `load_student` reads, without
    the paths of this machine.
    """
    about, geometry = dict(trained.about), trained.geometry
    about["pictures"] = {"path": Path(trained.about["pictures"]["path"]).name}
    about["geometry"] = {"height": geometry.height, "width": geometry.width, "fit": geometry.fit}
    about["preprocessing"] = {
        "layout": "b 3 h w float32",
        "channels": "RGB",
        "range": [0, 1],
        "size": [geometry.height, geometry.width],
        "fit": geometry.fit,
        "padding": PADDING_GREY / 255,
        "normalisation": "inside the network",
        "logits": "above 0: class 1" if trained.channels == 1 else "the largest: the class",
    }
    return {name: json.dumps(value) for name, value in about.items()}


def _check(trained: Trained, pictures: PictureSet, path: Path, is_free: bool) -> str:
    """Compare at the network's size and, where it is free, at a larger one."""
    stride, (height, width) = trained.network.stride, trained.size
    sizes = [(height, width), (height + stride, width + 2 * stride)][: 1 + is_free]
    found = [
        compare(trained, OnnxNetwork(path), samples(trained, pictures, "val", _CHECKED, size))
        for size in sizes
    ]
    for one in found:
        if not (one.is_close and one.agreement >= MIN_AGREEMENT):
            raise UserError(
                f"the exported network is not the student: {one}",
                wanted=f"at most {MAX_DIFFERENCE:g} (of the largest logit, where that is above 1),"
                f" at least {MIN_AGREEMENT}; nothing was written",
            )
    return str(found[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far the logits of two networks differ (inf: they are not finite, or of other shapes), the
    largest logit, and the share of pixels of which both say the same class.
    """

    difference: float
    largest: float
    agreement: float

    @property
    def is_close(self) -> bool:
        return self.difference < MAX_DIFFERENCE * max(1.0, self.largest)

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.2g} of logits up to {self.largest:.3g},"
            f" argmax agreement {self.agreement:.6f}"
        )


@torch.inference_mode()
def compare(trained: Trained, exported: OnnxNetwork, some: list[Sample]) -> Agreement:
    """Compare two networks on one picture first, then on the others in threes."""
    difference, largest, same, total = 0.0, 0.0, 0, 0
    for batch in _batches(some):
        wanted, found = trained.network(*batch), exported(*batch)
        largest = max(largest, float(wanted.abs().max()))
        if found.shape != wanted.shape or not found.isfinite().all():
            return Agreement(difference=float("inf"), largest=largest, agreement=0.0)
        difference = max(difference, float((found - wanted).abs().max()))
        same += int((predict(found) == predict(wanted)).sum())
        total += predict(wanted).numel()
    return Agreement(difference=difference, largest=largest, agreement=same / total)


def _batches(some: list[Sample]) -> Iterator[tuple[Tensor, ...]]:
    for part in (some[:1], *(some[i : i + 3] for i in range(1, len(some), 3))):
        columns = zip(*part, strict=True)
        yield tuple(torch.cat(column) for column in columns if column[0] is not None)


def _miou(trained: Trained, pictures: PictureSet) -> float | None:
    """Return the mIoU of all of val, None where nothing is labelled."""
    is_labelled = pictures.classes and pictures.shard_ids("val")
    return float(miou(confusion_of(trained, pictures, "val"))) if is_labelled else None


def _beside(
    trained: Trained, pictures: PictureSet, path: Path, some: list[Sample], before: float | None
) -> str:
    """Return what is lost by lower precision: agreement on some pictures, and mIoU, which was
    `before` (None: unknown) in fp32.
    """
    exported = OnnxNetwork(path).eval()
    found = compare(trained, exported, some)
    if found.difference == float("inf"):
        raise UserError(f"{path.name} gives values that are not finite; nothing was written")
    text = f"argmax agreement {found.agreement:.6f}"
    if before is not None:
        after = _miou(replace(trained, network=exported), pictures)
        text += f", mIoU {after:.4f} (fp32 {before:.4f})"
    return text
