"""A long run over many shards: resident memory and open files stay as they are.

`python benchmarks/soak.py` trains 2,000 steps of `tiny`'s structure from a cache of 400 training
shards, in uniform order, with evaluations and checkpoints, and writes
`benchmarks/results/soak_cpu<cores>_<yyyymm>.json`: slopes over the steps of the last three
quarters, by least squares over means of 50 steps, with their standard errors. About five minutes.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from bench.commands import call
from bench.machine import RESULTS, save
from bench.stand_ins import save_convolutions, write_pictures
from torch import Tensor

import stillroom.training.loop as loop
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import process_context
from stillroom.losses import BinaryCrossEntropy, FeatureMSE
from stillroom.recipe import Data, Recipe, Run
from stillroom.students.definitions import UNetStudent
from stillroom.teachers.configs import OnnxTeacher

SIZE, SHARD_ROWS, BATCH, EVERY = 32, 2, 8, 50
_PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=400)
    parser.add_argument("--results", type=Path, default=RESULTS)
    own = parser.parse_args()
    seen: list[tuple[float, int]] = []
    apply_gradient = loop.apply_gradient

    def watched(*words: Any) -> Tensor:
        seen.append((_resident_mb(), len([*Path("/proc/self/fd").iterdir()])))
        return apply_gradient(*words)

    with tempfile.TemporaryDirectory() as name:
        recipe = _recipe(Path(name), own.shards)
        cache_teacher(recipe, process_context("cpu", {}))
        rows_of_epoch = own.shards * SHARD_ROWS // BATCH
        epochs = -(-own.steps // rows_of_epoch)
        with patch.object(loop, "apply_gradient", watched):
            loop.train(replace(recipe, epochs=epochs))
    memory, files = zip(*seen, strict=True)
    figures = {
        "steps": len(seen),
        "shards": own.shards,
        "evaluations": epochs,
        "resident_mb": _trend(memory),
        "open_files": _trend(files),
    }
    save("soak", "python benchmarks/soak.py", figures, own.results)


def _recipe(folder: Path, shards: int) -> Recipe:
    train = write_pictures(folder / "train", shards * SHARD_ROWS, SIZE)
    val = write_pictures(folder / "val", 16, SIZE, first_seed=100_000)
    options = ("--val", val, "--classes", 2, "--shard-rows", SHARD_ROWS, "--format", "png")
    call("tools/make_shards.py", train, "--out", folder / "shards", "--size", SIZE, SIZE, *options)
    network = save_convolutions(folder / "network.onnx", ((16, 4),))
    return Recipe(
        name="soak",
        data=Data(shards=str(folder / "shards")),
        teachers=(OnnxTeacher(target="inner", path=str(network), kind="features"),),
        student=UNetStudent(width=4, depth=3, classes=1),
        terms=(BinaryCrossEntropy(), FeatureMSE(target="inner", tap="encoder.2", weight=0.1)),
        codec={"inner": "int8"},
        batch=BATCH,
        micro_batch=BATCH // 2,
        gate="off",
        run=Run(out=str(folder / "runs"), cache=str(folder / "cache"), device="cpu", quiet=True),
    )


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 2**20


def _trend(values: Sequence[float]) -> dict[str, float]:
    """Return first and last means and the slope per 1,000 steps with its standard error."""
    whole = len(values) // EVERY * EVERY
    means = np.asarray(values[:whole], float).reshape(-1, EVERY).mean(1)
    y = means[len(means) // 4 :]
    x = np.arange(len(y)) * EVERY / 1000
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    return {
        "first": round(float(y[0]), 2),
        "last": round(float(y[-1]), 2),
        "per_1000_steps": round(float(slope), 3),
        "standard_error": round(float(covariance[0, 0] ** 0.5), 3),
    }


if __name__ == "__main__":
    main()
