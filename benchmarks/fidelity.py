"""How far the gradient of a cached step is from that of a step with the teacher in it.

`python benchmarks/fidelity.py --shards SHARDS --network N.onnx [--encoder E.pth]` writes
`benchmarks/results/fidelity_<hardware>_<yyyymm>.json`. The recipe is `people_features` of
`benchmarks/bench/recipes.py`, its student at its first weights; both steps see the same pictures.
For each codec: the relative distance of the whole step's gradient (`step`) and of the feature
term's alone, for one draw and for the mean over more, each with noise of its own. `nearest` rounds
to the nearest step instead: its distance is a bias. Codecs are fitted on other rows.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench.commands import call
from bench.machine import save
from torch import Tensor

from stillroom.cli import recipe_from
from stillroom.codecs import parse_codec, stochastic
from stillroom.codecs.uniform import uniform
from stillroom.losses import Term
from stillroom.recipe import Augment
from stillroom.training.batches import to_batch
from stillroom.training.context import TrainContext
from stillroom.training.setup import prepare
from stillroom.training.step import local_counts, loss_factors, seed_forward, term_totals
from stillroom.types import Batch, Row, View

RECIPE = f"{Path(__file__).parent / 'bench' / 'recipes.py'}:people_features"
TARGET, FIT_STEPS, CPU = "detector", 8, torch.device("cpu")
EXACT = ("float16", "int8")
NOISY = tuple(f"stochastic:{error}" for error in ("0.3", "1", "2.4", "6", "24", "60"))
MEANS = (1, 4, 16, 64)  # draws whose gradients are averaged


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True, help="packed pictures")
    parser.add_argument("--network", type=Path, required=True, help="BGR 0..255, tensor input.427")
    parser.add_argument("--encoder", type=Path, help="first weights of the student's encoder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = [RECIPE, "--data.shards", str(arguments.shards), "--run.cache", f"{folder}/cache"]
        words += ["--teachers.0.path", str(arguments.network)]
        call("tools/cache_teacher.py", *words)
        if arguments.encoder:
            words += ["--student.weights", str(arguments.encoder)]
        recipe = recipe_from([*words, "--run.out", f"{folder}/runs"])
        context = prepare(replace(recipe, augment=Augment()))
        figures = _figures(context)
    save("fidelity", "python benchmarks/fidelity.py --shards ... --network ...", figures)


def _figures(context: TrainContext) -> dict[str, Any]:
    first, *others = _batches(context, FIT_STEPS + 1)
    values = [batch.targets[TARGET] for batch in others]
    wanted = {alone: _gradient(context, first, alone) for alone in (False, True)}
    found: dict[str, Any] = {}
    for text in (*EXACT, *NOISY):
        codec = parse_codec(text)
        fitted = codec.fit(values) if codec.needs_fit else {}
        kept = [_kept(first, codec, fitted, draw) for draw in range(MEANS[-1])]
        found[text] = {"step": _off(_gradient(context, kept[0], False), wanted[False])}
        if text in EXACT:
            found[text]["term"] = _off(_gradient(context, kept[0], True), wanted[True])
            continue
        draws = [_gradient(context, batch, True) for batch in kept]
        means = {n: _off(torch.stack(draws[:n]).mean(0), wanted[True]) for n in MEANS}
        found[text] |= {f"term_mean_of_{n}": value for n, value in means.items()}
        stochastic.uniform = lambda seeds, count, _: torch.full((len(seeds), count), 0.5)
        nearest = _kept(first, codec, fitted, 0)
        stochastic.uniform = uniform
        found[text]["term_nearest"] = _off(_gradient(context, nearest, True), wanted[True])
        print(text, found[text], flush=True)
    return found


def _batches(context: TrainContext, steps: int) -> Iterator[Batch]:
    """Steps of one micro-batch, with what the teacher says now."""
    built = context.recipe.teachers[0].build("cpu")
    for host in context.stream(range(steps)):
        batch = to_batch(host, CPU, context.cache)
        yield replace(batch, targets=dict(built(batch.image, rows=())))


def _kept(batch: Batch, codec: Any, fitted: dict[str, Tensor], draw: int) -> Batch:
    target, whole = batch.targets[TARGET], View(x0=0, y0=0, x1=1, y1=1)
    rows = [Row(key=f"{key}/{draw}", view=whole) for key in batch.keys]
    return replace(
        batch, targets={TARGET: codec.decode(codec.encode(target, rows, fitted), fitted)}
    )


def _gradient(context: TrainContext, batch: Batch, alone: bool) -> Tensor:
    """Return all gradients in a row: of the whole loss, or of the feature term alone."""
    terms: list[Term] = [t for t in context.recipe.terms if not alone or t.needs.target]
    distiller = context.distiller.train()
    distiller.zero_grad()
    seed_forward(0, 0, 0)
    factors = loss_factors([t.weight for t in terms], local_counts(terms, batch), 1)
    (factors * term_totals(terms, distiller(batch.image), batch, 0.0)).sum().backward()
    return torch.cat([p.grad.flatten() for p in distiller.parameters() if p.grad is not None])


def _off(found: Tensor, wanted: Tensor) -> float:
    distance = (found.double() - wanted.double()).norm() / wanted.double().norm()
    return float(f"{float(distance):.3g}")


if __name__ == "__main__":
    main()
