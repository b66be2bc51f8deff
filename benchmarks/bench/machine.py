"""What figures depend on, and the one way a benchmark keeps them."""

import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stillroom.jsonfile import write_json

RESULTS = Path(__file__).resolve().parents[1] / "results"
_ONNXRUNTIMES = ("onnxruntime-gpu", "onnxruntime")  # one library, two packages


def machine(*packages: str) -> dict[str, object]:
    """Return processor, cores, date, load, and the versions of Python and of the packages named.

    A load above the number of cores says that other work shared them: seconds are too long then.
    """
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": next(line.partition(": ")[2] for line in lines if line.startswith("model name")),
        "cores": os.cpu_count(),
        "load_1_5_15_min": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def bench_machine(device: str) -> dict[str, Any]:
    """Return the same and what a GPU is called through, "absent" where it is; for cuda the GPU."""
    packages = ("torch", "torchvision", "accelerate", "timm", "segmentation-models-pytorch", "zarr")
    found = machine() | {name: _version(name) for name in packages} | _onnxruntime()
    return found | _gpu() if device == "cuda" else found


def _gpu() -> dict[str, object]:
    import torch
    from torch.cuda import nccl

    return {
        "gpu": torch.cuda.get_device_name(0),
        "gpus": torch.cuda.device_count(),
        "gpu_mb": round(torch.cuda.get_device_properties(0).total_memory / 1e6),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, nccl.version())),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _onnxruntime() -> dict[str, object]:
    found: dict[str, object] = {n: v for n in _ONNXRUNTIMES if (v := _version(n)) != "absent"}
    try:
        import onnxruntime
    except ImportError as error:
        return found | {"onnxruntime_providers": f"none: {error}"}
    return found | {"onnxruntime_providers": onnxruntime.get_available_providers()}


def _driver() -> str:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"
    return done.stdout.splitlines()[0].strip()


def result_path(name: str, folder: Path = RESULTS, gpu: str | None = None) -> Path:
    """Return `<folder>/<name>_<hardware>_<yyyymm>.json`; hardware is `cpu<cores>` or the GPU."""
    hardware = f"cpu{os.cpu_count()}" if gpu is None else re.sub(r"[^a-z0-9]+", "-", gpu.lower())
    return folder / f"{name}_{hardware}_{time.strftime('%Y%m')}.json"


def save(
    name: str,
    command: str,
    figures: dict[str, Any],
    folder: Path = RESULTS,
    gpu: str | None = None,
) -> Path:
    """Write `<folder>/<name>_<hardware>_<yyyymm>.json`, print it line by line, return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = result_path(name, folder, gpu)
    found = machine("torch", "zarr", "segmentation-models-pytorch")
    onnxruntime = next(v for n in _ONNXRUNTIMES if (v := _version(n)) != "absent")
    write_json(
        path, {"command": command, "machine": found | {"onnxruntime": onnxruntime}, **figures}
    )
    for member, value in figures.items():
        print(f"  {member}: {value}")
    print(path)
    return path
