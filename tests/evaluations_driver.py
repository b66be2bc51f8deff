"""Trains with all that follows evaluations, and writes down what each rank makes of them.

torchrun --nproc-per-node N tests/evaluations_driver.py WORLD OUT
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import stillroom.training.loop as loop
from stillroom.jsonfile import write_json
from stillroom.recipe_optimizer import Plateau
from stillroom.training.context import TrainContext

_spec = importlib.util.spec_from_file_location("make", Path(__file__).with_name("make_tiny.py"))
assert _spec is not None and _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


def main(world: Path, out: Path) -> None:
    """Write `rank0.json`, `rank1.json`: the evaluations, the last rate, the sum of the average."""
    finish = loop._finish

    def noting(context: TrainContext, step: int, evaluations: list, seconds: float) -> None:
        assert context.average is not None
        sums = {name: t.double().sum().item() for name, t in context.average.state_dict().items()}
        body = {"step": step, "evaluations": evaluations, "average": sums}
        body["rate"] = context.optimizer.param_groups[0]["lr"]
        write_json(out / f"rank{context.schedule.rank}.json", body)
        finish(context, step, evaluations, seconds)

    recipe = replace(make.tiny_recipe(world, out / "runs"), ema=0.9, early_stopping=3, epochs=4)
    with patch.object(loop, "_finish", noting):
        loop.train(replace(recipe, schedule=Plateau(patience=0), distill_fade=30.0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
