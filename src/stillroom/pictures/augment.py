"""Changes of a student's picture: light and colour, and the mirror.

Photometric changes leave every pixel in its place, so what a teacher said about the clean picture
still fits; a mirrored picture needs mirrored targets.
"""

import numpy as np
from jaxtyping import Shaped, UInt8

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def photometric(
    image: UInt8[np.ndarray, "h w 3"], strength: float, generator: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture in other light; equal generators give equal pictures.

    Brightness, contrast and saturation are multiplied by a factor from [1 - strength, 1 + strength]
    each.
    """
    factors = generator.uniform(1 - strength, 1 + strength, 3)
    brightness, contrast, saturation = factors.astype(np.float32)
    pixels = image.astype(np.float32)
    mean = pixels.mean((0, 1)) @ _LUMA
    # Saturation mixes with a pixel's own grey, contrast with the picture's mean grey, and
    # brightness scales: one matrix and one offset, so one pass over the picture.
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * _LUMA[:, None]
    changed = pixels @ (brightness * contrast * matrix) + brightness * (1 - contrast) * mean
    return np.rint(np.clip(changed, 0, 255, out=changed), out=changed).astype(np.uint8)


def mirror(array: Shaped[np.ndarray, "h w *rest"]) -> Shaped[np.ndarray, "h w *rest"]:
    """Return a picture, mask or `inside` with left and right exchanged."""
    return np.ascontiguousarray(array[:, ::-1])
