"""Stage 1: run the teachers of a recipe once and keep what they said.

python tools/cache_teacher.py RECIPE [flags]
torchrun --nproc-per-node 2 tools/cache_teacher.py RECIPE [flags]
"""

import sys

from stillroom.cli import recipe_from, run


def main() -> None:
    from stillroom.extraction.extract import cache_teacher
    from stillroom.extraction.ranks import find_place, spread_over_gpus

    recipe = recipe_from()
    status = spread_over_gpus(recipe.run.device)
    if status is not None:
        sys.exit(status)
    place = find_place(recipe.run.device)
    cache = cache_teacher(recipe, place)
    place.say(f"{cache.path}: {'complete' if cache.is_complete else 'not complete yet'}")


if __name__ == "__main__":
    run(main)
