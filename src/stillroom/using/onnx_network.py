"""An exported student behind the interface of a network: onnxruntime runs it on the CPU.

What an export says of itself is JSON in the file's metadata: a `StudentDescription`, and
`preprocessing`.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from stillroom.errors import UserError, first_line
from stillroom.networks.normalise import Normalise
from stillroom.networks.taps import Network

IMAGES, BOXES, LOGITS = "images", "boxes", "logits"  # the names of inputs and output


class OnnxNetwork(Network):
    """Logits of an ONNX file, which normalises for itself; has no taps and no parameters."""

    stride, taps = 1, ()

    def __init__(self, path: Path) -> None:
        """Uses as many threads as torch does; UserError where onnxruntime cannot open the file."""
        import onnxruntime

        super().__init__()
        self.normalise = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what matters arrives as an exception
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime has a type for each of its statuses
            raise UserError(f"{path} is no ONNX network", found=first_line(error)) from None
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.needs_boxes = BOXES in [value.name for value in self._session.get_inputs()]

    def forward(self, image: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Return logits (b k h w) of pictures (b 3 h w), with boxes (b 4), pixels, where wanted."""
        inputs = {IMAGES: image} if boxes is None else {IMAGES: image, BOXES: boxes}
        arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()}
        return torch.from_numpy(self._session.run([LOGITS], arrays)[0])


def open_onnx(path: Path, kind: Any) -> tuple[OnnxNetwork, Any]:
    """Open an export; return it and what its metadata says, as `kind`; UserError for others."""
    if not path.is_file():
        raise UserError(f"there is no file {path}", fix="stillroom export runs/NAME")
    network = OnnxNetwork(path)
    try:
        about = {name: json.loads(text) for name, text in network.metadata.items()}
        return network.eval(), msgspec.convert(about, kind)
    except ValueError as error:
        raise UserError(
            f"{path} does not say which classes and preprocessing it has",
            found=f"{first_line(error)}",
            wanted="an ONNX file that stillroom export wrote",
        ) from None
