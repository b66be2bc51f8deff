"""Stage 1 against its teachers alone, on pictures that are in memory already, and what the cores
allow.

`python benchmarks/extract.py [--device cuda] [--repeats 5]` writes
`benchmarks/results/extract_<hardware>_<yyyymm>.json`. On a CPU: `people-lite` at 256 px with
stand-ins of about its teachers' cost; on a GPU `b3-b0-yolo` at 640 px with a detector in torch, as
`make bench-gpu` has it. Weights are random. Teachers and stage 1 take turns in one process: ratios
are medians over pairs that follow each other. Stage 1 is its loop, from the first picture read to
the last shard published; loading and fitting of codecs are left out. What else but the teachers it
does is measured part by part in one thread, by the thread's CPU clock; what the teachers alone keep
busy by that of the process, waiting threads of their own that spin included. Under two minutes.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench.extraction_rate import compare
from bench.gpu_bench import Bench
from bench.gpu_parts import extract
from bench.machine import save
from bench.stages import people_lite_words

from stillroom.cli import recipe_from
from stillroom.extraction.process import process_context

SIZE_PX, NUM_TRAIN, NUM_VAL, SHARD_ROWS = 256, 112, 16, 16
MASK_LAYERS = ((48, 1), (48, 1), (1, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        if arguments.device == "cuda":
            extract(Bench(device="cuda", folder=Path(name)), figures, arguments.repeats)
        else:
            sizes = (SIZE_PX, NUM_TRAIN, NUM_VAL, SHARD_ROWS)
            words = people_lite_words(Path(name), *sizes, MASK_LAYERS)
            recipe = recipe_from([*map(str, words), "--run.device", "cpu"])
            figures = compare(recipe, process_context("cpu", {}), arguments.repeats)
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else None
    command = f"python benchmarks/extract.py --device {arguments.device}"
    save("extract", f"{command} --repeats {arguments.repeats}", figures, gpu=gpu)


if __name__ == "__main__":
    main()
