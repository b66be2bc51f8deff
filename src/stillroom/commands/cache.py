"""Stage 1: run the teachers of a recipe once and keep what they said.

stillroom cache RECIPE [flags]
torchrun --nproc-per-node 2 -m stillroom cache RECIPE [flags]
"""

import sys

from stillroom.cli import recipe_from
from stillroom.errors import with_urls


def run() -> None:
    from stillroom.extraction.extract import cache_teacher
    from stillroom.extraction.process import process_context, spread_over_gpus

    recipe = recipe_from()
    status = spread_over_gpus(recipe.run.device)
    if status is not None:
        sys.exit(status)
    process = process_context(recipe.run.device)
    cache = cache_teacher(recipe, process)
    state = "complete" if cache.is_complete else "not complete yet"
    process.print(f"{with_urls(cache.path)}: {state}")
