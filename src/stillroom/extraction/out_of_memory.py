"""What stage 1 says of a micro-batch that the device does not hold: the largest one that it does.

Smaller ones are tried, each on two batches with teachers built anew: what a network or its arena
still held of the size that failed would be counted otherwise.
"""

import threading
from contextlib import closing
from dataclasses import replace

from stillroom.device_memory import largest_that_fits, smaller_micro_batches
from stillroom.errors import UserError
from stillroom.extraction.cache_identity import compose, existing_cache, probe
from stillroom.extraction.encode import encode, read_batches, run_teachers
from stillroom.extraction.process import ProcessContext
from stillroom.pictures.dataset import open_pictures
from stillroom.recipe import Recipe
from stillroom.signals import raise_if_stopped


def too_large(
    recipe: Recipe, process: ProcessContext, stop: threading.Event, reason: str
) -> UserError:
    """Return the error that names the micro-batch that fits; `reason` is the library's.

    Raises Stopped, and what the teachers raise but for memory.
    """

    def attempt(size: int) -> None:
        raise_if_stopped(stop, "a micro-batch that fits was being looked for")
        _run_two_batches(replace(recipe, micro_batch=size), process.device)

    fits = largest_that_fits(smaller_micro_batches(recipe.batch, recipe.micro_batch), attempt)
    fix = f"--micro-batch {fits} (tried, it fits); the cache stays the same, what is published too"
    if fits is None:
        fix = (
            "no smaller one fits either: end what else uses the device, take a larger one, pack"
            " smaller pictures, or --run.device cpu"
        )
    return UserError(
        f"the memory of {process.device_name} does not hold --micro-batch {recipe.micro_batch}",
        found=f"{reason:.300}",
        fix=fix,
    )


def _run_two_batches(recipe: Recipe, device: str) -> None:
    """Run the teachers and, where they are fitted, the codecs; nothing is written."""
    pictures = open_pictures(recipe.run.place(recipe.data.shards))
    teachers = tuple(config.build(device) for config in recipe.teachers)
    specs = probe(recipe, pictures, teachers, device)
    cache = existing_cache(recipe, compose(recipe, pictures, teachers, specs))
    shard = max(pictures.shards, key=lambda shard: shard.rows).id
    rows = recipe.rows_of(pictures.open(shard))[: 2 * recipe.micro_batch]
    places = ((shard, row) for row in rows)
    size = recipe.size_of(pictures)
    read = read_batches(pictures, places, size, recipe.micro_batch, recipe.run.num_workers)
    with closing(read) as batches:
        for batch in batches:  # the outputs of one are held while the next is run, as in `_fill`
            outputs = run_teachers(teachers, batch, device)
            if cache is not None and cache.is_fitted:
                encode(cache, batch, outputs)
