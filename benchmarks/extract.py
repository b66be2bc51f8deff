"""Stage 1 against its teachers alone, on pictures that are in memory already, and what the cores
allow.

    python benchmarks/extract.py [--device cuda] [--repeats N]
    python benchmarks/extract.py RECIPE [flags of the recipe] [--repeats N]

Without a recipe, networks and pictures are made up: on a CPU `people-lite` at 256 px with stand-ins
of about its teachers' cost, on a GPU `b3-b0-yolo` at 640 px as `make bench-gpu` has it. Teachers
and stage 1 take turns in one process: ratios are medians over pairs that follow each other. Stage 1
is its loop, from the first picture that is read to the last shard that is published; loading and
the fitting of codecs are left out. What it does besides its teachers is measured part by part in
one thread, by the thread's CPU clock; what the teachers alone keep busy by that of the process,
threads of theirs that spin while they wait included. Where other work shares the cores, only
`taskset -c N` with OMP_NUM_THREADS=1 gives ratios that mean something. Under two minutes; writes
`benchmarks/results/extract_<hardware>_<yyyymm>.json` (`extract_<recipe>_...`).
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

from stillroom.cli import recipe_from, run_command
from stillroom.extraction.process import process_context

SIZE_PX, NUM_TRAIN, NUM_VAL, SHARD_ROWS = 256, 512, 64, 256
MASK_LAYERS = ((48, 1), (48, 1), (1, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    own, words = parser.parse_known_args()
    name, figures = "extract", dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        if own.device == "cuda" and not words:
            extract(Bench(device="cuda", folder=Path(folder)), figures, own.repeats)
        else:
            sizes = (SIZE_PX, NUM_TRAIN, NUM_VAL, SHARD_ROWS)
            made = words or map(str, people_lite_words(Path(folder), *sizes, MASK_LAYERS))
            recipe = recipe_from([*made, "--run.device", own.device])
            figures = compare(recipe, process_context(own.device), own.repeats)
            name += f"_{recipe.name.replace('-', '_')}" if words else ""
    gpu = torch.cuda.get_device_name() if own.device == "cuda" else None
    command = f"python benchmarks/extract.py --device {own.device} --repeats {own.repeats}"
    save(name, command, figures, gpu=gpu)


if __name__ == "__main__":
    run_command(main)
