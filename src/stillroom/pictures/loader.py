"""Reading ahead: pictures are decoded in threads while the caller works on the ones before.

Threads, not processes: decoding releases the GIL, and megabyte arrays need no shared memory.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from stillroom.pictures.dataset import Picture
from stillroom.types import IGNORE

Job = TypeVar("Job")
Result = TypeVar("Result")

_MAX_DECODERS = 16


def num_decoders() -> int:
    """Return how many threads decode pictures where nothing else is to be done: one for each core
    that this process may use, if it shares them evenly with those that a launcher started here.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MAX_DECODERS, num_cores() // here))


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_ahead(
    jobs: Iterable[Job], read: Callable[[Job], Result], workers: int, depth: int
) -> Generator[Result, None, None]:
    """Yield `read(job)` in the order of the jobs, with up to `depth` jobs under way in `workers`
    threads.

    An error of `read` is raised where its result is due. Closing the iterator cancels what has not
    begun.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(read, job))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def image_tensor(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 h w"]:
    """Return a decoded picture as RGB in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float().div_(255).contiguous()


def box_tensor(pictures: Sequence[Picture]) -> Float[Tensor, "b 4"] | None:
    """Return the boxes of rows that are regions, in pixels; None where they are none."""
    boxes = [picture.box for picture in pictures if picture.box is not None]
    return torch.tensor(boxes) if boxes else None


def mask_array(picture: Picture) -> UInt8[np.ndarray, "h w"]:
    """Return the mask, or all void where the picture has none."""
    if picture.mask is not None:
        return picture.mask
    return np.full(picture.image.shape[:2], IGNORE, np.uint8)


def inside_array(picture: Picture) -> Bool[np.ndarray, "h w"]:
    """Return True on the picture itself, False on letterbox padding; on the grid of the mask."""
    x0, y0, x1, y1 = picture.inside
    shape = picture.image.shape[:2] if picture.mask is None else picture.mask.shape
    inside = np.zeros(shape, bool)
    inside[y0:y1, x0:x1] = True
    return inside
