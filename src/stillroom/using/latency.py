"""How long a student takes for a picture: the network alone, and from decoded picture to mask."""

from collections.abc import Callable

import numpy as np
import torch

from stillroom.pictures.draw import Rgb
from stillroom.types import whole_box
from stillroom.using.resampling import mask_at
from stillroom.using.student import Trained, times_ms

_WARM_UP, _ROUNDS = 5, 50


def latency_text(trained: Trained, image: Rgb, batch: int = 1) -> str:
    """Return median and 95th percentile, ms a picture, on the device that the network is on; files
    are neither read nor written while the clock runs.
    """
    normalise = trained.network.normalise
    device = normalise.mean.device
    placed = torch.rand(batch, 3, *trained.size, device=device)
    height, width = image.shape[:2]
    seen, boxes = None, None
    if trained.network.needs_boxes:  # all of the picture
        seen = whole_box(trained.size).repeat(batch, 1).to(device)
        boxes = [(0.0, 0.0, float(width), float(height))] * batch

    def alone() -> None:
        trained.network(placed, seen)

    def whole() -> None:
        for logits in trained.small_logits([image] * batch, boxes):
            mask_at(logits, image.shape[:2])

    with torch.inference_mode():
        lines = [
            f"network alone, {trained.size[0]} x {trained.size[1]} px: {_timed(alone, batch)}",
            f"with resizing and mask of {height} x {width} px: {_timed(whole, batch)}",
        ]
    how = "onnxruntime" if trained.run.suffix == ".onnx" else f"PyTorch {torch.__version__}"
    threads = f"threads {torch.get_num_threads()}, {normalise.mean.device.type}, {how}"
    return "\n".join([*lines, f"batch {batch}, {threads}; {_ROUNDS} rounds after {_WARM_UP}"])


def _timed(function: Callable[[], None], batch: int) -> str:
    times = times_ms(function, _ROUNDS, _WARM_UP)
    median, slow = np.percentile(times, (50, 95)) / batch
    return f"median {median:.2f} ms, p95 {slow:.2f} ms a picture, {1000 / median:.1f} a second"
