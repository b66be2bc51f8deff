"""Gives targets that lie in files, one a picture, instead of running a network.

Nothing is unpickled, and a file's header says how large it is before its values are read.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor
from torch.nn import functional

from stillroom.errors import StillroomError, UserError
from stillroom.jsonfile import read_bytes
from stillroom.networks.normalise import Normalise
from stillroom.teachers.devices import open_device
from stillroom.teachers.files import target_files
from stillroom.teachers.own_configs import FileTeacher
from stillroom.teachers.probabilities import logits_of, mask_logits
from stillroom.tensorfile import map_tensors
from stillroom.types import IGNORE, Row

_MAX_VALUES = 1 << 26  # of one file; a cache takes no more of one row
_MAX_BYTES = 8 * _MAX_VALUES + (1 << 20)  # as 64-bit numbers, and a header


class BuiltFileTeacher:
    """Files as a `BuiltTeacher`: no function of pixels, so it has to be told the rows."""

    preprocessing = None
    damage = ()
    provider = "files"

    def __init__(self, config: FileTeacher, device: str) -> None:
        """Raises UserError where there is no file, or no such device."""
        self.device, self.identity = open_device(device), {}
        self._config = config
        self._files = target_files(config.folder, config.suffix)
        self._shape: tuple[int, ...] | None = None

    def __call__(
        self,
        image: Float[Tensor, "b 3 h w"],
        *,
        rows: Sequence[Row] = (),
        preprocessing: Normalise | None = None,
        boxes: Float[Tensor, "b 4"] | None = None,
    ) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """Return the target of each row, float32 on the device.

        Raises UserError for a row that is not the whole picture, or without a file that fits.
        """
        assert len(rows) == len(image) and preprocessing is None
        size = (image.shape[2], image.shape[3])
        targets = [self._target(row, size) for row in rows]
        return {self._config.target: torch.stack(targets).to(self.device)}

    def _target(self, row: Row, size: tuple[int, int]) -> Float[Tensor, "c y x"]:
        if not _is_whole(row, size):
            raise UserError(
                f"the target {self._config.target!r} lies in files, which know whole pictures only",
                found=f"{row.key}, region {row.region}, {row.view}",
                fix="one view of each picture, without --data.regions and --data.size",
            )
        path = self._files.get(row.key)
        if path is None:
            raise UserError(
                f"there is no file for the picture {row.key}",
                found=f"no regular file {row.key}{self._config.suffix} in {self._config.folder}",
                wanted="one for every picture, named by its key",
                fix="make it, or leave the picture out of the shards",
            )
        target = _as_target(
            _read_array(path, self._config.kind == "mask"), self._config, size, path
        )
        self._shape = self._shape or tuple(target.shape)
        if tuple(target.shape) != self._shape:
            raise UserError(
                f"{path} has another shape than the files before it",
                found=_text(target.shape),
                wanted=_text(self._shape),
            )
        return target


def _is_whole(row: Row, size: tuple[int, int]) -> bool:
    """Say whether a row is a packed picture of `size` (h, w) as it stands."""
    view = row.view
    box = (view.x0, view.y0, view.x1, view.y1)
    return row.region is None and not view.mirrored and box == (0, 0, size[1], size[0])


def _read_array(path: Path, is_mask: bool) -> Shaped[np.ndarray, "*c y x"]:
    """Return the array that a file holds; UserError for anything else.

    Grey of 8 or 16 bits stays uint8 or uint16; the numbers of a palette mean something in a mask.
    """
    try:
        values = _READERS[path.suffix](path, is_mask)
    except StillroomError:
        raise
    except Exception as error:  # what readers and decoders raise on bad bytes cannot be listed
        raise UserError(
            f"{path} cannot be read as {path.suffix}",
            found=f"{type(error).__name__}: {error}".splitlines()[0][:200],
        ) from None
    if values.dtype.kind not in "fiub" or values.ndim not in (2, 3) or not values.size:
        raise UserError(
            f"{path} holds no map of numbers",
            found=f"{_text(values.shape)} {values.dtype}",
            wanted="channels x height x width, or height x width for one channel",
        )
    return values


def _as_target(
    values: Shaped[np.ndarray, "*c y x"], config: FileTeacher, size: tuple[int, int], path: Path
) -> Float[Tensor, "k h w"]:
    """Return what a file's values are as a target of a picture of `size` (h, w)."""
    values = values if values.ndim == 3 else values[None]
    if config.kind == "mask":
        return _of_mask(values, config, size, path)
    if config.suffix == ".png":
        values = values / np.float32(np.iinfo(values.dtype).max)
    target = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
    if config.kind == "features":
        return target[0]
    if target.shape[2] * size[1] != target.shape[3] * size[0]:
        raise UserError(
            f"{path} is not of the shape of its picture",
            found=f"{target.shape[2]} x {target.shape[3]} (height x width)",
            wanted=f"{size[0]} x {size[1]}, the picture as it is packed, or in proportion",
        )
    if config.kind == "probabilities":
        target = logits_of(target, f"{path},")
    if tuple(target.shape[2:]) != size:
        target = functional.interpolate(target, size, mode="bilinear")
    return target[0]


def _of_mask(
    values: Shaped[np.ndarray, "c y x"], config: FileTeacher, size: tuple[int, int], path: Path
) -> Float[Tensor, "k h w"]:
    assert config.classes is not None
    if values.shape != (1, *size) or values.dtype.kind == "f":
        raise UserError(
            f"{path} is no mask of its picture",
            found=f"{_text(values.shape)} {values.dtype}",
            wanted=f"{size[0]} x {size[1]} whole numbers, the picture as it is packed",
        )
    mask = torch.from_numpy(values[0].astype(np.int64))
    most = max(2, config.classes) - 1
    wrong = mask[((mask < 0) | (mask > most)) & (mask != IGNORE)]
    if len(wrong):
        raise UserError(
            f"{path} has values that are no class",
            found=", ".join(map(str, wrong.unique().tolist()[:8])),
            wanted=f"0 to {most}, or {IGNORE} for void",
        )
    return mask_logits(mask, config.classes, config.confidence)


def _read_npy(path: Path, is_mask: bool) -> np.ndarray:
    mapped = np.lib.format.open_memmap(path, mode="r")  # refuses objects, needs no memory
    _bound(mapped.shape)
    return np.array(mapped)


def _read_safetensors(path: Path, is_mask: bool) -> np.ndarray:
    tensors = list(map_tensors(path).values())
    if len(tensors) != 1:
        raise ValueError(f"{len(tensors)} tensors instead of one")
    _bound(tensors[0].shape)
    return (tensors[0].float() if tensors[0].is_floating_point() else tensors[0]).numpy()


def _read_png(path: Path, is_mask: bool) -> np.ndarray:
    with Image.open(io.BytesIO(read_bytes(path, _MAX_BYTES)), formats=("PNG",)) as image:
        _bound(image.size)
        if image.mode not in (("L", "P", "I;16") if is_mask else ("L", "I;16")):
            raise ValueError(f"mode {image.mode} instead of grey")
        return np.array(image)


_READERS = {".npy": _read_npy, ".safetensors": _read_safetensors, ".png": _read_png}


def _bound(shape: Sequence[int]) -> None:
    if math.prod(shape) > _MAX_VALUES:
        raise ValueError(f"{_text(shape)} values instead of at most {_MAX_VALUES}")


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
