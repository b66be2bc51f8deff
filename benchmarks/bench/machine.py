"""What figures depend on, and the one way a benchmark keeps them."""

import os
import platform
import re
import shutil
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


def gpu_machine() -> dict[str, object]:
    """Return the GPU (its name only where there is one), its driver, and what calls it."""
    import torch

    packages = ("torch", "torchvision", "accelerate", "timm", "segmentation-models-pytorch", "zarr")
    found = machine() | {name: _version(name) for name in packages} | _onnxruntime()
    found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        found["gpu"] = gpu_name()
        found["gpus"] = torch.cuda.device_count()
        found["gpu_mb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e6)
        found["driver"] = _driver()
        found["cudnn"] = torch.backends.cudnn.version()
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def gpu_name() -> str:
    """Return the name of the first GPU."""
    import torch

    return torch.cuda.get_device_name(0)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _onnxruntime() -> dict[str, object]:
    found: dict[str, object] = {n: v for n in _ONNXRUNTIMES if (v := _version(n)) != "absent"}
    if not found:
        return {"onnxruntime": "absent"}
    import onnxruntime

    return found | {"onnxruntime_providers": onnxruntime.get_available_providers()}


def _driver() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "unknown: no nvidia-smi"
    words = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else "unknown"


def result_path(name: str, folder: Path = RESULTS, gpu: str | None = None) -> Path:
    """Return `<folder>/<name>_<hardware>_<yyyymm>.json`; hardware is `cpu<cores>` or the GPU."""
    hardware = f"cpu{os.cpu_count()}" if gpu is None else re.sub(r"[^a-z0-9]+", "-", gpu.lower())
    return folder / f"{name}_{hardware}_{time.strftime('%Y%m')}.json"


def save(name: str, command: str, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `<folder>/<name>_cpu<cores>_<yyyymm>.json`, print it line by line, return its path."""
    path = result_path(name, folder)
    found = machine("torch", "zarr", "segmentation-models-pytorch")
    onnxruntime = next(v for n in _ONNXRUNTIMES if (v := _version(n)) != "absent")
    write_json(
        path, {"command": command, "machine": found | {"onnxruntime": onnxruntime}, **figures}
    )
    for member, value in figures.items():
        print(f"  {member}: {value}")
    print(path)
    return path
