"""What the parts of `make bench-gpu` work with: how much they do, their pictures and flags."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.commands import ROOT, call
from bench.detector import NARROW, YOLOV9_E_SIZED, Layers
from bench.stages import pack_shapes, save_b3

from stillroom.jsonfile import read_json

BATCH = 4  # of both stages, as in `b3-b0-yolo`
RECIPES = Path(__file__).with_name("recipes.py")
_DETECTORS = Path(__file__).with_name("detector.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much work the parts do."""

    size_px: int  # of pictures
    layers: Layers  # of the detector
    factory: str  # the function that makes it
    num_train: int
    num_val: int
    shard_rows: int
    epochs: int  # of stage 2
    log_every: int  # steps whose mean rate is one figure
    onnx_batches: tuple[int, ...]
    num_runs: int  # timed, of each of these batches


FULL = Scale(
    size_px=640,
    layers=YOLOV9_E_SIZED,
    factory="yolov9_e_sized",
    num_train=32,
    num_val=8,
    shard_rows=8,
    epochs=8,
    log_every=8,
    onnx_batches=(1, 4, 16),
    num_runs=20,
)
REHEARSAL = Scale(
    size_px=64,
    layers=NARROW,
    factory="narrow",
    num_train=12,
    num_val=2,
    shard_rows=4,
    epochs=1,
    log_every=1,
    onnx_batches=(1, 4),
    num_runs=3,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a part works with."""

    device: str  # cpu or cuda
    folder: Path  # the parts' common scratch: pictures, networks, caches, runs

    @property
    def scale(self) -> Scale:
        """What is done on this device."""
        return FULL if self.device == "cuda" else REHEARSAL

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that sees one GPU, or none and one core."""
        if self.device == "cpu":
            return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}

    def shards(self) -> Path:
        """Return the folder of packed pictures."""
        path, scale = self.folder / "shards", self.scale
        if not path.exists():
            begun = self.folder / "begun"
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir()
            rows = ("--shard-rows", scale.shard_rows)
            pack_shapes(begun / "shards", scale.size_px, scale.num_train, scale.num_val, *rows)
            (begun / "shards").rename(path)
        return path

    def flags(self) -> list[object]:
        """Return what all commands of both stages are given."""
        workers = min(8, os.cpu_count() or 1)
        batch = ("--batch", BATCH, "--micro-batch", BATCH, "--run.workers", workers)
        weights = ("--student.weights", "None")
        return ["--data.shards", self.shards(), "--run.device", self.device, *batch, *weights]

    def with_torch_detector(self) -> list[object]:
        """Return the recipe whose teachers both are torch networks, with its flags."""
        factory = f"{_DETECTORS}:{self.scale.factory}"
        teachers = ("--teachers.0.path", self.b3(), "--teachers.1.factory", factory)
        cache = ("--run.cache", self.folder / "cache")
        return [f"{RECIPES}:b3_b0_torch", *self.flags(), *teachers, *cache]

    def b3(self) -> Path:
        """Return the weights of the mask teacher."""
        path = self.folder / "b3.pth"
        return path if path.exists() else save_b3(path.with_suffix(".begun")).rename(path)

    def measured(self, script: str, *words: object) -> dict[str, Any]:
        """Run a script on one device; return its seconds, its memory and its steps' losses."""
        figures = self.folder / "measured.json"
        arguments = (figures, ROOT / script, *words)
        done = call("benchmarks/bench/measured.py", *arguments, environment=self.environment)
        costs = {"seconds": round(done.seconds, 1), "peak_rss_mb": round(done.peak_mb)}
        return read_json(figures) | costs
