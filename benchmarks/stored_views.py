"""How many stored views a student needs: K views of each picture against a new one every pass.

`python benchmarks/stored_views.py RECIPE --shards SHARDS --teacher RUN [--encoder E.pth]` writes
`benchmarks/results/stored_views_<recipe>_<hardware>_<yyyymm>.json`. RECIPE (`people-few` or
`street-few`) is trained at equal steps from caches of 1, 2, 4 and 8 views and of as many as there
are passes: pass p of a picture shows view (p + hash) mod K, so that there no view comes twice,
which is what a teacher in the training loop would see of fresh augmentation. The plain
recipe without a teacher draws fresh views. Scores are those of the last step. What was trained is
not trained again.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from bench.commands import call, train_once
from bench.machine import save

from stillroom.cache import find_caches
from stillroom.training.log import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", choices=("people-few", "street-few"))
    parser.add_argument("--shards", type=Path, required=True, help="packed pictures")
    parser.add_argument("--teacher", type=Path, required=True, help="a finished run")
    parser.add_argument("--encoder", type=Path, help="first weights of the student's encoder")
    parser.add_argument("--views", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--work", type=Path, required=True, help="folder of caches and runs")
    arguments = parser.parse_args()
    counts = [*arguments.views, arguments.epochs]
    scores: dict[str, list[float]] = {str(count): [] for count in counts}
    scores |= {"plain, whole picture": [], "plain, fresh views": []}
    for count in counts:
        call("tools/cache_teacher.py", *_words(arguments, count))
    for seed in arguments.seeds:
        for count in counts:
            scores[str(count)].append(_score(arguments, arguments.recipe, count, seed))
        for name, count in (("plain, whole picture", 1), ("plain, fresh views", arguments.epochs)):
            scores[name].append(_score(arguments, f"{arguments.recipe}-plain", count, seed))
        print(scores, flush=True)
    caches = (find_caches(_root(arguments, count))[0] for count in counts)
    sizes = [sum(cache.shard_bytes(shard) for shard in cache.shard_ids()) for cache in caches]
    figures: dict[str, Any] = {
        "epochs": arguments.epochs,
        "seeds": arguments.seeds,
        "cache_mb": {
            count: round(size / 1e6, 1) for count, size in zip(counts, sizes, strict=True)
        },
    }
    figures["miou"] = {
        name: {"mean": round(statistics.mean(found), 4), "seeds": [round(s, 4) for s in found]}
        for name, found in scores.items()
    }
    command = f"python benchmarks/stored_views.py {arguments.recipe} --epochs {arguments.epochs}"
    save(f"stored_views_{arguments.recipe}", f"{command} ...", figures)


def _root(arguments: argparse.Namespace, count: int) -> Path:
    return arguments.work / f"cache-{count}"


def _words(arguments: argparse.Namespace, count: int, recipe: str | None = None) -> list[str]:
    name = recipe or arguments.recipe
    words = [name, "--data.shards", str(arguments.shards), "--views.count", str(count)]
    words += ["--run.cache", str(_root(arguments, count))]
    return (
        words if name.endswith("plain") else [*words, "--teachers.0.path", str(arguments.teacher)]
    )


def _score(arguments: argparse.Namespace, recipe: str, count: int, seed: int) -> float:
    """Train a student unless it is there; return the mIoU of its last step."""
    name = f"{recipe}-{count}-seed{seed}"
    folder = arguments.work / "runs" / name
    words = [
        *("--seed", str(seed), "--epochs", str(arguments.epochs), "--run.workers", "1"),
        *("--run.evaluate-every", str(arguments.epochs), "--run.log-every", "100"),
    ]
    if arguments.encoder:
        words += ["--student.weights", str(arguments.encoder)]
    train_once(folder, *_words(arguments, count, recipe), *words)
    return [line["miou"] for line in read_metrics(folder) if line["kind"] == "val"][-1]


if __name__ == "__main__":
    main()
