"""Looking into an ONNX file before it becomes a teacher: what can be tapped, and which
preprocessing explains labelled pictures best.

All usual preprocessings are tried in both channel orders, then mean and deviation around the best
one, for a network that has its own. Costs some 10 passes over the pictures, and 12 over 32 of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from tqdm import tqdm

from stillroom.columns import in_columns
from stillroom.errors import UserError
from stillroom.extraction.gate import gate_pictures
from stillroom.extraction.health import chunks
from stillroom.extraction.preprocessing import (
    MARGIN,
    Scores,
    describe,
    other_preprocessings,
    score,
)
from stillroom.metrics import num_classes
from stillroom.networks.normalise import IMAGENET_MEAN, Channels, Normalise
from stillroom.pictures.dataset import Picture, open_pictures
from stillroom.teachers.configs import OnnxTeacher
from stillroom.teachers.files import existing
from stillroom.teachers.onnx import BuiltOnnxTeacher
from stillroom.teachers.onnx_file import load_graph
from stillroom.teachers.onnx_graph import Tensor, picture_input, tensors
from stillroom.teachers.protocol import BuiltTeacher

_SIZE = (256, 256)  # of a picture, px, where the network leaves it free
_PAGE = 30  # tensors
_FEW = 32  # pictures that mean and deviation are searched on
_TARGET = "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How well labels are explained with one preprocessing."""

    name: str
    preprocessing: Normalise
    scores: Scores

    @property
    def flags(self) -> str:
        """The teacher's flags that declare it."""
        p, numbers = self.preprocessing, lambda t: " ".join(f"{v:.4g}" for v in t.flatten())
        return (
            f"--teachers.N.channels {p.channels} --teachers.N.scale {p.scale:g}"
            f" --teachers.N.mean {numbers(p.mean)} --teachers.N.std {numbers(p.std)}"
        )


def about(
    path: str, size: tuple[int, int] | None = None, near: str | None = None, page: int = 1
) -> str:
    """Return inputs, outputs and a page of the tensors that can be tapped, for people.

    Shapes and strides are those for a picture of `size` (h, w); None is the network's own.
    Raises UserError for what is no ONNX file or takes no picture.
    """
    model = load_graph(existing(path))
    given = picture_input(model)
    size = size or given.size or _SIZE
    found = tensors(model, size, near)
    outputs = {output.name for output in model.graph.output}
    pages = max(1, -(-len(found) // _PAGE))
    if not 1 <= page <= pages:
        raise UserError("there is no such page", found=page, wanted=f"1 to {pages}")
    some = found[(page - 1) * _PAGE : page * _PAGE]
    rows = [["tensor", "shape", "stride", "made by"], *(_row(t, outputs) for t in some)]
    order = f"nearest to {near!r} first" if near else "in the order of the graph"
    return "\n".join(
        [
            f"{path}: {len(model.graph.node)} nodes, {_parameters(model) / 1e6:.2f} M parameters",
            f"input: {given.name}, {_free(given.batch)} x 3 x"
            f" {' x '.join(_free(side) for side in given.size or (None, None))}",
            f"outputs: {', '.join(sorted(outputs))}",
            f"{len(found)} tensors can be tapped, {order}, for a picture of"
            f" {size[0]} x {size[1]} (page {page} of {pages}):",
            *(f"  {line}" for line in in_columns(rows, 4)),
        ]
    )


def fit_preprocessing(
    path: str,
    shards: Path,
    tensor: str | None = None,
    size: tuple[int, int] | None = None,
    wanted: int = 64,
    device: str = "cpu",
) -> list[Fit]:
    """Return how a network does on labelled pictures with each preprocessing, the best one first.

    Probabilities are recognised. Raises UserError where pictures have no labels or not the
    network's classes.
    """
    pictures = open_pictures(shards)
    if pictures.geometry is None:
        raise UserError(f"the pictures of {shards} have no one size", fix="pack with --size H W")
    samples = gate_pictures(pictures, wanted)
    if any(picture.mask is None for picture in samples):
        raise UserError(f"the pictures of {shards} have no labels to compare with")
    built = _build(path, tensor, size, samples, device)
    channels = built(next(chunks(samples))[1])[_TARGET].shape[1]
    if num_classes(channels) != len(pictures.classes):
        raise UserError(
            "the network does not have the classes of the pictures, so nothing can be compared",
            found=f"{num_classes(channels)} classes, {channels} channels",
            wanted=f"{len(pictures.classes)} classes: {', '.join(pictures.classes)}",
            fix="name the tensor that has them: --tensor NAME",
        )
    every = _usual()
    with tqdm(total=len(every) + 13, disable=None, leave=False, unit="preprocessing") as bar:
        found = [_fit(name, p, built, samples, bar) for name, p in every.items()]
        found.sort(key=lambda fit: -fit.scores.miou)
        own = _refined(found[0], built, samples, bar)
    better = own.scores.miou > found[0].scores.miou + MARGIN
    return [own, *found] if better else found


def fits_text(fits: Sequence[Fit], path: str) -> str:
    """Return the preprocessings that were tried, best first, and the flags of the best."""
    rows = [["preprocessing", "mIoU"], *([fit.name, f"{fit.scores.miou:.3f}"] for fit in fits)]
    best = fits[0]
    near = [f.name for f in fits[1:] if f.scores.miou > best.scores.miou - MARGIN]
    doubt = f"within {MARGIN} of it, so not told apart for sure: {', '.join(near)}"
    return "\n".join(
        [
            f"{path} on {len(best.scores)} labelled pictures:",
            *(f"  {line}" for line in in_columns(rows, 1)),
            f"best: {describe(best.preprocessing)}",
            *([doubt] if near else []),
            f"flags: {best.flags}",
        ]
    )


def _build(
    path: str, tensor: str | None, size: tuple[int, int] | None, samples: Sequence[Picture],
    device: str,
) -> BuiltOnnxTeacher:  # fmt: skip
    """Open the network; what it answers are probabilities where all values lie in [0, 1], of
    bright input too.
    """
    size = size or picture_input(load_graph(existing(path))).size
    config = OnnxTeacher(target=_TARGET, path=path, tensor=tensor, kind="logits", size=size)
    built = config.build(device)
    image = next(chunks(samples))[1]
    answers = [built(image * scale)[_TARGET] for scale in (1, 255)]
    if all(bool((answer >= 0).all() and (answer <= 1).all()) for answer in answers):
        built = replace(config, kind="probabilities").build(device)
    return built


def _usual() -> dict[str, Normalise]:
    """Return every usual preprocessing in both orders, by name."""
    plain = Normalise((0.0,) * 3, (1.0,) * 3)
    found = {"RGB in [0, 1]": plain, **other_preprocessings(plain, both=True)}
    means = tuple(255 * value for value in IMAGENET_MEAN)
    orders: tuple[tuple[Channels, tuple[float, ...]], ...] = (("RGB", means), ("BGR", means[::-1]))
    for channels, mean in orders:
        name = f"{channels} in 0..255 minus ImageNet mean"
        found[name] = Normalise(mean, (1.0,) * 3, scale=255.0, channels=channels)
    return found


def _fit(
    name: str, preprocessing: Normalise, built: BuiltTeacher, pictures: Sequence[Picture], bar: tqdm
) -> Fit:
    scores = score(_TARGET, built, pictures, preprocessing)
    bar.update()
    return Fit(name=name, preprocessing=preprocessing, scores=scores)


def _refined(best: Fit, built: BuiltTeacher, pictures: Sequence[Picture], bar: tqdm) -> Fit:
    """Return the best preprocessing that is found around another: its deviations times one factor,
    its means moved by one amount, in steps that are halved.
    """
    some = pictures[:: -(-len(pictures) // _FEW)]
    factor, shift = 1.0, 0.0
    highest = score(_TARGET, built, some, best.preprocessing).miou
    for step in (1.0, 0.5, 0.25):
        for times, more in ((2**step, 0), (2**-step, 0), (1, step / 4), (1, -step / 4)):
            tried = _moved(best.preprocessing, factor * times, shift + more)
            found = _fit("", tried, built, some, bar).scores.miou
            if found > highest:
                highest, factor, shift = found, factor * times, shift + more
    name = f"{best.preprocessing.channels} with mean and std of its own"
    return _fit(name, _moved(best.preprocessing, factor, shift), built, pictures, bar)


def _moved(preprocessing: Normalise, factor: float, shift: float) -> Normalise:
    """Return it with deviations times `factor` and means moved by `shift` of the whole range."""
    scale = preprocessing.scale
    mean = tuple(v + shift * scale for v in preprocessing.mean.flatten().tolist())
    std = tuple(v * factor for v in preprocessing.std.flatten().tolist())
    return Normalise(mean, std, scale=scale, channels=preprocessing.channels)


def _row(tensor: Tensor, outputs: set[str]) -> list[str]:
    stride = "?" if tensor.stride is None else " x ".join(map(str, dict.fromkeys(tensor.stride)))
    made_by = tensor.made_by + " (output)" * (tensor.name in outputs)
    return [tensor.name, tensor.text, stride, made_by]


def _free(length: int | None) -> str:
    return "any" if length is None else str(length)


def _parameters(model: onnx.ModelProto) -> int:
    total = 0
    for weight in model.graph.initializer:
        count = 1
        for length in weight.dims:
            count *= length
        total += count
    return total
