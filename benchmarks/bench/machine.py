"""What figures depend on, and the one way a benchmark keeps them."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime

from stillroom.jsonfile import write_json

RESULTS = Path(__file__).resolve().parents[1] / "results"


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


def save(name: str, command: str, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `<folder>/<name>_cpu<cores>_<yyyymm>.json`, print it line by line, return its path."""
    path = folder / f"{name}_cpu{os.cpu_count()}_{time.strftime('%Y%m')}.json"
    found = machine("torch", "zarr", "segmentation-models-pytorch")
    found["onnxruntime"] = onnxruntime.__version__  # of whichever package there is
    write_json(path, {"command": command, "machine": found, **figures})
    for member, value in figures.items():
        print(f"  {member}: {value}")
    print(path)
    return path
