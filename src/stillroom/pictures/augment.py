"""Changes of a student's picture: light and colour, and the mirror.

Photometric changes leave every pixel in its place, so what a teacher said about the clean picture
still fits; a mirrored picture needs mirrored targets.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped, UInt8

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True, slots=True, kw_only=True)
class Photometric:
    """Brightness, contrast and saturation times a factor from [1 - strength, 1 + strength] each."""

    strength: float = 0.0  # 0 changes nothing, 0.3 is moderate, below 1

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 1:
            raise ValueError(f"photometric strength {self.strength} is not in [0, 1)")

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], generator: np.random.Generator
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Return a changed copy; three numbers are drawn, whatever the strength."""
        brightness, contrast, saturation = generator.uniform(
            1 - self.strength, 1 + self.strength, 3
        ).astype(np.float32)
        if self.strength == 0:
            return image.copy()
        pixels = image.astype(np.float32)
        mean = pixels.mean((0, 1)) @ _LUMA
        # Saturation mixes with a pixel's own grey, contrast with the picture's mean grey, and
        # brightness scales: one matrix and one offset, so one pass over the picture.
        matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * _LUMA[:, None]
        changed = pixels @ (brightness * contrast * matrix) + brightness * (1 - contrast) * mean
        return np.rint(np.clip(changed, 0, 255, out=changed), out=changed).astype(np.uint8)


def photometric(
    image: UInt8[np.ndarray, "h w 3"], strength: float, generator: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Return `image` in other light; equal generators give equal pictures."""
    return Photometric(strength=strength)(image, generator)


def mirror(array: Shaped[np.ndarray, "h w *rest"]) -> Shaped[np.ndarray, "h w *rest"]:
    """Return a picture, mask or `inside` with left and right exchanged."""
    return np.ascontiguousarray(array[:, ::-1])
