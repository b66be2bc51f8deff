"""Changes of a student's picture: light, colour, blur, noise, JPEG, and the mirror.

Each is drawn from a generator, and equal generators give equal pictures. Changes of light leave
every pixel in its place, so what a teacher said about the clean picture still fits; a mirrored
picture needs mirrored targets.
"""

import io

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageFilter

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def photometric(
    image: UInt8[np.ndarray, "h w 3"], strength: float, generator: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture in other light.

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


def hsv(
    image: UInt8[np.ndarray, "h w 3"],
    strengths: tuple[float, float, float],
    generator: np.random.Generator,
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture whose hue, saturation and value are multiplied by a factor from
    [1 - strength, 1 + strength] each; hue goes round, the others are clipped.
    """
    factors = 1 + generator.uniform(-1, 1, 3) * strengths
    hue, *others = np.arange(256) * factors[:, None]
    table = np.concatenate([hue % 256, *np.clip(others, 0, 255)]).astype(np.uint8)
    return np.array(Image.fromarray(image).convert("HSV").point(table.tolist()).convert("RGB"))


def gamma(
    image: UInt8[np.ndarray, "h w 3"], strength: float, generator: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture whose values, as shares of 255, are raised to a power from
    [1 - strength, 1 + strength].
    """
    (power,) = generator.uniform(1 - strength, 1 + strength, 1)
    table = np.rint(255 * (np.arange(256) / 255) ** power).astype(np.uint8)
    return table[image]


def blur(
    image: UInt8[np.ndarray, "h w 3"], most: float, generator: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture under a Gaussian blur of a standard deviation up to `most` pixels."""
    radius = generator.uniform(0, most)
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noise(
    image: UInt8[np.ndarray, "h w 3"], most: float, generator: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture with Gaussian noise of a standard deviation up to `most`, 1 = 255 levels."""
    deviation = np.float32(255 * generator.uniform(0, most))
    changed = image + deviation * generator.standard_normal(image.shape, np.float32)
    return np.rint(np.clip(changed, 0, 255, out=changed), out=changed).astype(np.uint8)


def jpeg(
    image: UInt8[np.ndarray, "h w 3"], least: int, generator: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture as it comes out of a JPEG file of a quality from `least` to 95."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(generator.integers(least, 96)))
    return np.array(Image.open(file))


def mirror(array: Shaped[np.ndarray, "h w *rest"]) -> Shaped[np.ndarray, "h w *rest"]:
    """Return a picture, mask or `inside` with left and right exchanged."""
    return np.ascontiguousarray(array[:, ::-1])
