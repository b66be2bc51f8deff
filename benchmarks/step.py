"""A student's step alone, from the cache, and with the teachers in it: pictures a second, and on a
GPU peak memory, in one run.

    python benchmarks/step.py RECIPE [flags of the recipe] [--rounds N] [--steps N]

The recipe's teachers and pictures are real files, named by its flags; the cache is made first where
it is missing. Alone means with the targets of one step in memory, decoded: what no reader can beat.
Writes `benchmarks/results/step_<recipe>_<hardware>_<yyyymm>.json` (`--results DIR`).
"""

import argparse
from pathlib import Path

import torch
from bench.machine import RESULTS, save
from bench.step_times import step_times

from stillroom.cli import recipe_from, run_command
from stillroom.pictures.dataset import open_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of each round and kind")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the figures")
    own, words = parser.parse_known_args()
    recipe = recipe_from(words)
    pictures = open_pictures(Path(recipe.data.shards))
    figures = {
        "size": list(recipe.size_of(pictures)),
        "batch": [recipe.batch, recipe.micro_batch],
        "threads": torch.get_num_threads(),
        "codec": recipe.codec,
        **step_times(recipe, own.rounds, own.steps),
    }
    save(
        f"step_{recipe.name.replace('-', '_')}",
        f"python benchmarks/step.py {recipe.name}",
        figures,
        own.results,
    )


if __name__ == "__main__":
    run_command(main)
