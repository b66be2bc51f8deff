"""Runs an ONNX teacher: picture, preprocessing, network, and its answer as logits or features."""

from collections.abc import Sequence

import onnx
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from stillroom.device_memory import is_out_of_memory
from stillroom.errors import FailureError, UserError, first_line
from stillroom.networks.normalise import Normalise
from stillroom.teachers.configs import OnnxTeacher
from stillroom.teachers.devices import open_device
from stillroom.teachers.fields import places, strides
from stillroom.teachers.files import existing
from stillroom.teachers.onnx_file import embed, load_graph
from stillroom.teachers.onnx_graph import (
    choose_tensor,
    cut,
    follows_the_size,
    picture_input,
    with_input,
)
from stillroom.teachers.onnx_session import RUN_ERRORS, OnnxSession
from stillroom.teachers.onnx_weights import graph_damage, num_parameters
from stillroom.teachers.pooling import pooled
from stillroom.teachers.probabilities import logits_of
from stillroom.types import Row

_PROBE = (256, 256)  # picture size that a network without one is probed at, px


class BuiltOnnxTeacher:
    """An ONNX network as a `BuiltTeacher`.

    `input_size` is the (h, w) that the network sees, None where it is the picture's. `batch` is the
    number of rows that the network takes at once, None where any number will do.
    """

    def __init__(self, config: OnnxTeacher, device: str) -> None:
        """Load, cut, free and open the network; raises UserError for what cannot be."""
        self._config = config
        self.device = open_device(device)
        path = existing(config.path)
        model = load_graph(path)
        names = {config.target: config.tensor, **places(config.tensors)}
        self._tensors = {target: choose_tensor(model, name, path) for target, name in names.items()}
        model = cut(model, tuple(dict.fromkeys(self._tensors.values())))
        embed(model, path.parent)
        self.damage, self.num_parameters = graph_damage(model), num_parameters(model)
        model, self.batch, fixed = _freed(model, config)
        self.input_size = config.size or fixed
        if fixed is not None and config.size not in (None, fixed):
            raise _wrong_size(fixed, config.size)
        self._fixed, self._strides = fixed, strides(config.tensors)
        self._session = OnnxSession(model, self.device)
        self._rows = 0  # of the largest run so far
        self._seen: set[tuple[int, int]] = set()
        self.preprocessing = Normalise(config.mean, config.std, config.scale, config.channels)
        self.provider, self.identity = self._session.provider, {}

    @torch.inference_mode()
    def __call__(
        self,
        image: Float[Tensor, "b 3 h w"],
        *,
        rows: Sequence[Row] = (),
        preprocessing: Normalise | None = None,
        boxes: Float[Tensor, "b 4"] | None = None,
    ) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """Return every target: logits at the picture's size, features on their own grid.

        Raises UserError where the network cannot take a picture of this size or does not say what
        was declared; onnxruntime's own error where memory runs out.
        """
        height, width = image.shape[2:]
        size = self._config.size or (height, width)
        if self._fixed not in (None, size):
            raise _wrong_size(self._fixed, size)
        image = _resize(image.to(self.device, torch.float32), size)
        normalise = (preprocessing or self.preprocessing).to(self.device)
        answers = self._run_rows(normalise(image))
        outputs = {target: answers[name] for target, name in self._tensors.items()}
        main = outputs[self._config.target]
        if self._config.kind == "probabilities":
            main = logits_of(main, "a tensor")
        if self._config.kind != "features":
            outputs[self._config.target] = _resize(main, (height, width))
        return pooled(outputs, self._strides, (height, width))

    def _run_rows(self, image: Tensor) -> dict[str, Tensor]:
        """Run any number of rows, in batches of one size where the network or the GPU wants it."""
        rows = self.batch or len(image)
        if self.batch is None and self.device.type == "cuda":
            rows = max(self._rows, rows)  # convolutions are chosen once per batch size
        parts = []
        for start in range(0, len(image), rows):
            part = image[start : start + rows]
            missing = rows - len(part)
            if missing:
                part = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)])
            parts.append({n: a[: rows - missing] for n, a in self._run(part).items()})
        self._rows = rows  # not where they were too many for the device
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _run(self, image: Tensor) -> dict[str, Tensor]:
        size = (image.shape[2], image.shape[3])
        try:
            answers = self._session.run(image)
        except RUN_ERRORS as error:
            if is_out_of_memory(error):
                raise
            kind = FailureError if size in self._seen else UserError
            raise kind(
                f"the network of {self._config.target} could not run on {len(image)} x {size}",
                found=first_line(error),
                fix="give a size that it takes, often a multiple of 32, with --teachers.N.size H W",
            ) from None
        for name, answer in answers.items():
            if answer.ndim != 4 or len(answer) != len(image):
                raise UserError(
                    f"the tensor {name} is no map per picture",
                    found="x".join(map(str, answer.shape)),
                    wanted=f"{len(image)} x c x h x w",
                    fix="name another with --teachers.N.tensor NAME",
                )
        self._seen.add(size)
        return answers


def _freed(
    model: onnx.ModelProto, config: OnnxTeacher
) -> tuple[onnx.ModelProto, int | None, tuple[int, int] | None]:
    """Free the fixed batch and size that nothing depends on; return what stays fixed, too."""
    given = picture_input(model)
    batch, size = given.batch, given.size
    if size is not None and follows_the_size(model, size):
        size = None
    height, width = size or (None, None)
    if batch is not None:
        candidate = with_input(model, (None, 3, height, width))
        original = with_input(model, (batch, 3, *(given.size or (None, None))))
        probe = given.size or config.size or _PROBE
        if _same_rows(original, candidate, batch, probe, config.scale):
            batch = None
    return with_input(model, (batch, 3, height, width)), batch, size


def _same_rows(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    batch: int,
    size: tuple[int, int],
    scale: float,
) -> bool:
    """Tell whether the candidate, given one row more, says per row what the original says."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((batch + 1, 3, *size), generator=generator) * scale
    cpu = torch.device("cpu")
    try:
        first = OnnxSession(original, cpu)
        parts = [first.run(image[:batch]), first.run(image[-1:].repeat(batch, 1, 1, 1))]
        found = OnnxSession(candidate, cpu).run(image)
    except (*RUN_ERRORS, UserError):
        return False  # rows go through in the declared batch, which is always right
    wanted = {name: torch.cat([part[name] for part in parts])[: batch + 1] for name in found}
    return all(_are_close(found[name], wanted[name]) for name in found)


def _are_close(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    largest = float(wanted.nan_to_num(0, posinf=0, neginf=0).abs().max())
    return torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[2:]) == size:
        return image
    return functional.interpolate(
        image, size, mode="bilinear", align_corners=False, antialias=False
    )


def _wrong_size(fixed: tuple[int, int] | None, found: tuple[int, int] | None) -> UserError:
    assert fixed is not None and found is not None
    return UserError(
        "the network takes pictures of one size only",
        found=f"{found[0]} x {found[1]}",
        wanted=f"{fixed[0]} x {fixed[1]}",
        fix=f"--teachers.N.size {fixed[0]} {fixed[1]} (pictures are resized for it)",
    )
