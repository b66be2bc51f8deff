"""Masks as run lengths of pixels, off first, column by column, as COCO's uncompressed ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from stillroom.errors import DamageError


def run_lengths(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """Return the lengths of equal pixels, off first, column by column."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.array([0, *changes, len(flat)])).tolist()
    return [0, *lengths] if flat[0] else lengths


def from_run_lengths(
    runs: Any, height: int, width: int, what: str = "a mask"
) -> Bool[np.ndarray, "{height} {width}"]:
    """Return the mask of which `run_lengths` made this; raises DamageError for what is none."""
    is_list = isinstance(runs, Sequence) and all(isinstance(n, int) and n >= 0 for n in runs)
    if not is_list or sum(runs) != height * width:
        wanted = f"run lengths that add up to {height} x {width}"
        raise DamageError(f"{what} is damaged", found=f"{runs!r:.80}", wanted=wanted)
    values = np.arange(len(runs), dtype=np.uint8) % 2
    return np.repeat(values, runs).reshape(width, height).T.astype(bool)
