"""When the device's memory runs out: whether an error says so, and which smaller size fits."""

import gc
from collections.abc import Callable, Iterable

import torch

from stillroom.errors import StillroomError

_TEXTS = (
    "out of memory",  # torch, the driver, and "CUDA failure 2" of onnxruntime
    "failed to allocate memory for requested buffer",  # onnxruntime's arena
    "_alloc_failed",  # cuBLAS, cuFFT, and cuDNN up to 8
    "allocation_failed",  # cuDNN 9
    "bad_alloc",  # onnxruntime on the CPU, without its arena
    "defaultcpuallocator",  # torch on the CPU
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of torch, a CUDA library, onnxruntime or numpy says that memory ran
    out; one of ours never does.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return not isinstance(error, StillroomError) and any(words in text for words in _TEXTS)


def smaller_micro_batches(batch: int, failed: int, world: int = 1) -> list[int]:
    """Return the micro-batches below `failed` that cut `batch` evenly, and into a multiple of
    `world`; largest first.
    """
    sizes = range(min(batch, failed - 1), 0, -1)
    return [size for size in sizes if batch % size == 0 and batch // size % world == 0]


def largest_that_fits(sizes: Iterable[int], attempt: Callable[[int], object]) -> int | None:
    """Return the first of `sizes` for which `attempt(size)` does not run out of memory, else None.

    Give the largest first. Other errors of `attempt` are raised. Call it outside the `except` that
    caught the first error: while that is held, its traceback holds the tensors that filled the
    memory.
    """
    for size in sizes:
        gc.collect()  # tracebacks and networks are cycles
        torch.cuda.empty_cache()  # does nothing where CUDA was never used
        try:
            attempt(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return size
    return None
