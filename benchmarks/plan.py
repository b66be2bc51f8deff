"""The planner against what it planned: three settings, planned and then really done, in one run.

`python benchmarks/plan.py` takes under five minutes on two cores and writes
`benchmarks/results/plan_<hardware>_<yyyymm>.json`: planned by measured, of the seconds of stage 1
(those of its shards), of the cache's size, and of the rows a second of training from the cache
(`train`, as its log has them) and with the teachers in the step, which is a loop of this file over
the project's own step. Pictures and networks are made up. Each round plans and does every setting;
ratios are of medians over the rounds. Networks have one thread, readers the other cores: where
other work shares the machine, threads that wait for one another would measure that.

- detector: an inner tensor of an ONNX detector, kept with `stochastic:6`;
- masks: logits of a wide U-Net, `float16`, for a small one;
- one_layer: a single convolution whose feature is 256x24x24, two epochs: do not cache.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from bench.machine import RESULTS, save
from bench.stages import pack_shapes, timed
from bench.stand_ins import save_convolutions

from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import process_context
from stillroom.losses import BinaryCrossEntropy, FeatureMSE, LogitMSE
from stillroom.pictures.dataset import open_pictures
from stillroom.planning.describe_plan import describe, recommendation
from stillroom.planning.measure import PlanOptions
from stillroom.planning.measure_student import context_for, train_step
from stillroom.planning.run_plan import Plan, run_plan
from stillroom.recipe import Data, Recipe, Run
from stillroom.students.definitions import UNetStudent
from stillroom.teachers.configs import OnnxTeacher, RunTeacher
from stillroom.training.batches import to_batch
from stillroom.training.checkpoint import save_student
from stillroom.training.loop import train
from stillroom.types import TargetSpec

SIZE, TRAIN, VAL, BATCH = 96, 192, 32, 8
DETECTOR = ((32, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
ONE_LAYER = ((256, 4),)
ONLINE_STEPS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was planned or measured of one setting."""

    extraction_s: float
    disk_mb: float
    cached_per_s: float
    online_per_s: float

    def total_s(self, epochs: int) -> tuple[float, float]:
        """Seconds of the whole, with a cache and with the teachers in the step."""
        rows = epochs * TRAIN
        return self.extraction_s + rows / self.cached_per_s, rows / self.online_per_s


def main() -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of onnxruntime
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipes = make_recipes(folder)
        found: dict[str, list[tuple[Plan, Figures]]] = {name: [] for name in recipes}
        for turn in range(arguments.rounds):
            for name, recipe in recipes.items():
                place = folder / f"{name}-{turn}"
                run = replace(recipe.run, out=str(place / "runs"), cache=str(place / "cache"))
                recipe = replace(recipe, run=run)
                plan = run_plan(recipe, PlanOptions(minutes=0.2))
                found[name].append((plan, do(recipe)))
            print(*(describe(pairs[-1][0]) for pairs in found.values()), sep="\n\n", flush=True)
    figures = {name: compared(pairs, recipes[name].epochs) for name, pairs in found.items()}
    about = {"rounds": arguments.rounds, "size_px": SIZE, "pictures": [TRAIN, VAL]}
    save("plan", "python benchmarks/plan.py", about | figures, arguments.out)


def make_recipes(folder: Path) -> dict[str, Recipe]:
    """Pack pictures, write networks; the recipes of the three settings by name."""
    pack_shapes(folder / "shards", SIZE, TRAIN, VAL, "--shard-rows", 64)
    save_convolutions(folder / "detector.onnx", DETECTOR, inner="inner")
    save_convolutions(folder / "one_layer.onnx", ONE_LAYER)
    wide = UNetStudent(width=16, depth=3, classes=1)
    torch.manual_seed(0)
    save_student(folder / "wide", wide.build(), {"network": wide.architecture()})
    base = Recipe(
        name="plan",
        data=Data(shards=str(folder / "shards")),
        student=UNetStudent(width=8, depth=3, classes=1),
        terms=(BinaryCrossEntropy(weight=1.0),),
        batch=BATCH,
        micro_batch=BATCH // 2,
        epochs=3,
        gate="off",
        run=Run(device="cpu", log_every=4, evaluate_every=100),
    )
    features = FeatureMSE(target="inner", tap="encoder.2", weight=0.1)
    detector = OnnxTeacher(
        target="inner", path=str(folder / "detector.onnx"), tensor="inner", kind="features"
    )
    masks = RunTeacher(target="mask", path=str(folder / "wide"))
    one_layer = OnnxTeacher(target="inner", path=str(folder / "one_layer.onnx"), kind="features")
    return {
        "detector": replace(
            base,
            teachers=(detector,),
            terms=(*base.terms, replace(features, tap="encoder.3")),
            codec={"inner": "stochastic:6"},
        ),
        "masks": replace(
            base,
            teachers=(masks,),
            terms=(*base.terms, LogitMSE(target="mask", weight=0.1)),
            codec={"mask": "float16"},
        ),
        "one_layer": replace(
            base,
            teachers=(one_layer,),
            terms=(*base.terms, features),
            codec={"inner": "float16"},
            student=UNetStudent(width=4, depth=3, classes=1),
            epochs=2,
        ),
    }


def do(recipe: Recipe) -> Figures:
    """Run both stages, and the training that has the teachers in its step."""
    with timed("_fill") as spent:
        cache = cache_teacher(recipe, process_context("cpu", {}))
    ((extraction_s, _),) = spent
    lines = (train(recipe) / "metrics.jsonl").read_text().splitlines()
    rates = [line["rows_per_s"] for line in map(json.loads, lines) if line["kind"] == "train"]
    return Figures(
        extraction_s=extraction_s,
        disk_mb=sum(map(cache.shard_bytes, cache.shard_ids())) / 1e6,
        cached_per_s=statistics.median(rates[1:]),
        online_per_s=online_rate(recipe, cache.specs),
    )


def online_rate(recipe: Recipe, specs: Mapping[str, TargetSpec]) -> float:
    """Train some steps with the teachers in each; return the median of rows a second."""
    pictures = open_pictures(Path(recipe.data.shards))
    context = context_for(recipe, pictures, specs)
    teachers = [config.build("cpu") for config in recipe.teachers]
    seconds: list[float] = []
    steps = range(2 + ONLINE_STEPS)  # two warm up
    with closing(context.stream(steps)) as stream:
        for _ in steps:
            began = time.perf_counter()
            hosts = [next(stream) for _ in range(recipe.batch // recipe.micro_batch)]
            batches = [to_batch(host, torch.device("cpu"), None) for host in hosts]
            for batch in batches:
                for built in teachers:
                    batch.targets |= built(batch.image)
            train_step(context, batches)
            seconds.append(time.perf_counter() - began)
    return recipe.batch / statistics.median(seconds[2:])


def compared(pairs: list[tuple[Plan, Figures]], epochs: int) -> dict[str, Any]:
    """Return medians over the rounds of what was planned and measured, and their ratios."""
    plans, done = [planned(plan) for plan, _ in pairs], [figures for _, figures in pairs]
    found: dict[str, Any] = {}
    for field in fields(Figures):
        by_plan, by_clock = (
            statistics.median(getattr(figures, field.name) for figures in some)
            for some in (plans, done)
        )
        found[field.name] = {
            "planned": float(f"{by_plan:.4g}"),
            "measured": float(f"{by_clock:.4g}"),
            "ratio": round(by_plan / by_clock, 3),
            "ratios": [
                round(getattr(a, field.name) / getattr(b, field.name), 3)
                for a, b in zip(plans, done, strict=True)
            ],
        }
    totals = [figures.total_s(epochs) for figures in done]
    found["measured_cached_by_online"] = [
        round(with_it / without, 2) for with_it, without in totals
    ]
    found["said"] = [recommendation(plan) for plan, _ in pairs]
    return found


def planned(plan: Plan) -> Figures:
    """Return what a plan says of the recipe's own codecs."""
    line = plan.own
    return Figures(
        extraction_s=line.extraction_s,
        disk_mb=line.disk_bytes / 1e6,
        cached_per_s=line.cached_per_s,
        online_per_s=line.online_per_s,
    )


if __name__ == "__main__":
    main()
