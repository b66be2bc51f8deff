"""onnxruntime's CUDA provider: its options, the libraries it needs, and why it did not load."""

import ctypes
import io
from contextlib import redirect_stdout
from pathlib import Path

import onnxruntime

CUDA_PROVIDER = "CUDAExecutionProvider"
_LIBRARY = Path(onnxruntime.__file__).with_name("capi") / "libonnxruntime_providers_cuda.so"


def cuda_options(number: int) -> dict[str, int | str]:
    """Return the options of a session on CUDA device `number`.

    Results stay those of float32, and repeat: no TF32, convolutions chosen by heuristic, not by a
    race. The arena takes what is asked for: by default it doubles at each step, and what it takes
    torch can never have. It has no limit, as nobody could say which.
    """
    return {
        "device_id": number,
        "use_tf32": 0,
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


def load_cuda_libraries() -> None:
    """Load what the provider needs from the wheels that bring it; the provider names no folder, so
    the loader finds only what is loaded. What is missing stays missing: see `why_not_loaded`.
    """
    with redirect_stdout(io.StringIO()):  # it prints what it does not find
        onnxruntime.preload_dlls()


def why_not_loaded() -> str | None:
    """Return the loader's own words where the provider cannot be loaded, None where it can."""
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return f"onnxruntime {onnxruntime.__version__} was built without CUDA"
    try:
        ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        return str(error)
    return None
