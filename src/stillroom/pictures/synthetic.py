"""Made-up pictures with known masks: textured shapes on a textured ground, for demonstrations and
tests.

Four classes: ground, disc (stripes), square (checks), triangle (dots). Colours say nothing; texture
and outline do. Borders are void.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from stillroom.types import IGNORE

CLASSES = ("ground", "disc", "square", "triangle")
_BORDER_PX = 1.5


def draw_shapes(
    seed: int, size: int
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Return picture and mask number `seed`, both `size` x `size` pixels."""
    generator = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[:size, :size].astype(np.float32)
    image = _ground(generator, size)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(int(generator.integers(1, 5))):
        kind = int(generator.integers(1, 4))
        distance = _distance(kind, x, y, generator, size)
        inside = distance < 0
        colours = generator.uniform(30, 225, (2, 3)).astype(np.float32)
        pattern = _texture(kind, x, y, generator)[..., None]
        image[inside] = (pattern * colours[0] + (1 - pattern) * colours[1])[inside]
        mask[inside] = kind
        mask[np.abs(distance) < _BORDER_PX] = IGNORE
    noise = generator.normal(0, 8, image.shape).astype(np.float32)
    return (image + noise).clip(0, 255).astype(np.uint8), mask


def write_shapes(folder: Path, count: int, size: int, first_seed: int = 0) -> None:
    """Write `images/NNNNNN.png` and `masks/NNNNNN.png` for `count` seeds."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        seed = first_seed + number
        image, mask = draw_shapes(seed, size)
        Image.fromarray(image).save(folder / "images" / f"{seed:06d}.png", compress_level=1)
        Image.fromarray(mask).save(folder / "masks" / f"{seed:06d}.png", compress_level=1)


def _ground(generator: np.random.Generator, size: int) -> Float[np.ndarray, "h w 3"]:
    """A blotchy ground with false textures in it."""
    coarse = generator.uniform(40, 215, (6, 6, 3)).astype(np.uint8)
    ground = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    false = _texture(int(generator.integers(1, 4)), x, y, generator)[..., None]
    return np.asarray(ground, np.float32) + 16 * (false - 0.5)


def _distance(
    kind: int,
    x: Float[np.ndarray, "h w"],
    y: Float[np.ndarray, "h w"],
    generator: np.random.Generator,
    size: int,
) -> Float[np.ndarray, "h w"]:
    """Signed distance (pixels, roughly) from the outline of a shape at a drawn place, size and
    angle.
    """
    cx, cy = generator.uniform(0.1 * size, 0.9 * size, 2)
    radius = generator.uniform(0.15, 0.3) * size
    angle = generator.uniform(0, 2 * np.pi)
    u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    if kind == 1:
        distance = np.hypot(u, v) - radius
    elif kind == 2:
        distance = np.maximum(abs(u), abs(v)) - 0.85 * radius
    else:
        distance = np.maximum(v, abs(u) * 0.866 - v * 0.5) - 0.6 * radius
    return distance.astype(np.float32)


def _texture(
    kind: int,
    x: Float[np.ndarray, "h w"],
    y: Float[np.ndarray, "h w"],
    generator: np.random.Generator,
) -> Float[np.ndarray, "h w"]:
    """Stripes, checks or dots between 0 and 1."""
    period = generator.uniform(4, 6)
    phase = generator.uniform(0, period, 2)
    angle = generator.uniform(0, np.pi)
    u = (x * np.cos(angle) + y * np.sin(angle) + phase[0]) / period
    v = (y * np.cos(angle) - x * np.sin(angle) + phase[1]) / period
    stripes, across = np.sin(2 * np.pi * u) > 0, np.sin(2 * np.pi * v) > 0
    found: Bool[np.ndarray, "h w"]
    if kind == 1:
        found = stripes
    elif kind == 2:
        found = stripes ^ across
    else:
        found = (np.sin(2 * np.pi * u) + np.sin(2 * np.pi * v)) > 0.9
    return found.astype(np.float32)
