"""Trains as `train` does and writes down the rows of every micro-batch that goes forward.

python tests/killed_driver.py WORLD OUT [resume], in as many processes as the environment says
"""

import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import stillroom.training.loop as loop
from stillroom.types import Batch

_spec = importlib.util.spec_from_file_location("make", Path(__file__).with_name("make_tiny.py"))
assert _spec is not None and _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


def main(world: Path, out: Path, resume: bool = False) -> None:
    """Train 42 steps of two micro-batches, a checkpoint after every third."""
    recipe = replace(make.tiny_recipe(world, out), batch=8, micro_batch=4, epochs=14)
    recipe = replace(recipe, run=replace(recipe.run, resume=resume, log_every=1))
    forward_and_backward = loop.forward_and_backward

    def noted(context: Any, batches: Iterable[Batch], factors: Any, buffers: Any, step: int) -> Any:
        def seen() -> Iterator[Batch]:
            for micro, batch in zip(context.schedule.micro_batches(), batches, strict=True):
                with (out / f"rows-{os.getpid()}.jsonl").open("a") as file:
                    file.write(json.dumps([step, micro, batch.keys]) + "\n")
                yield batch

        return forward_and_backward(context, seen(), factors, buffers, step)

    with patch.object(loop, "forward_and_backward", noted):
        loop.train(recipe)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "resume" in sys.argv[3:])
