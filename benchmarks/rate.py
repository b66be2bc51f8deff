"""What a smaller row costs the student: bytes a row against its score and the error of the features
that it learned.

`python benchmarks/rate.py RECIPE --shards SHARDS --network N.onnx [--encoder E.pth]` writes
`benchmarks/results/rate_<recipe>_<hardware>_<yyyymm>.json` and a plot beside it
(`rate_<recipe>_pretrained` with `--encoder`). RECIPE is a
function of `benchmarks/bench/recipes.py`: few labels, and a detector's inner tensor of every
picture. A cache is made with each codec; each seed trains one student without the feature term and
one from each cache, equal in first weights, order and augmentation. Scores are those of the last
step. `error` is what a codec keeps off from fp16, over the energy about each channel's median;
`feature_error` the mean squared error of the student's projected tap on the validation split,
always against fp16, over the tensor's mean square. What was trained is not trained again, so that
a study that was stopped goes on.
"""

import argparse
import functools
import statistics
from contextlib import closing
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from bench.commands import call, train_once
from bench.entropy import per_channel, symbols_of
from bench.machine import RESULTS, result_path, save

from stillroom.cache import Cache, find_caches
from stillroom.cli import recipe_from
from stillroom.recipe import Recipe
from stillroom.training.batches import to_batch
from stillroom.training.checkpoint import load_checkpoint, newest_checkpoint
from stillroom.training.log import read_metrics
from stillroom.training.setup import prepare
from stillroom.training.stream import validation_batches
from stillroom.types import ShardId

RECIPES = Path(__file__).parent / "bench" / "recipes.py"
EXACT, WITHOUT, TARGET = "float16", "without", "detector"
FINER = ("int8", "stochastic:0.3", "stochastic:1", "stochastic:2.4")
CODECS = (EXACT, *FINER, *(f"stochastic:{error}" for error in (6, 12, 24, 60)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", choices=("people_features", "street_features"))
    parser.add_argument("--shards", type=Path, required=True, help="packed pictures")
    parser.add_argument("--network", type=Path, required=True, help="BGR 0..255, tensor input.427")
    parser.add_argument("--encoder", type=Path, help="first weights of the student's encoder")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--weight", type=float, default=5.0, help="of the feature term")
    parser.add_argument("--work", type=Path, required=True, help="folder of caches and runs")
    arguments = parser.parse_args()
    texts = list(dict.fromkeys([EXACT, *arguments.codecs]))
    kept = {text: _cache(arguments, text) for text in texts}
    figures: dict[str, Any] = {text: _row_figures(kept[text], kept[EXACT]) for text in texts}
    figures[WITHOUT] = {}
    students: dict[str, list[dict[str, float]]] = {text: [] for text in figures}
    for seed in arguments.seeds:
        for text in figures:
            students[text].append(_student(arguments, text, seed))
            print(text, seed, students[text][-1], flush=True)
    for text, found in students.items():
        figures[text] |= _mean_and_spread(found)
    command = f"python benchmarks/rate.py {arguments.recipe} --epochs {arguments.epochs}"
    command += f" --weight {arguments.weight:g} --seeds {' '.join(map(str, arguments.seeds))} ..."
    settings = {"seeds": arguments.seeds, "settings": figures}
    name = f"rate_{arguments.recipe.partition('_')[0]}{'_pretrained' if arguments.encoder else ''}"
    save(name, command, settings)
    _draw(figures, result_path(name, RESULTS).with_suffix(".png"))


def _words(arguments: argparse.Namespace, text: str) -> list[str]:
    """Flags of both stages for one codec."""
    codec = EXACT if text == WITHOUT else text
    flags = {
        "data.shards": arguments.shards,
        "teachers.0.path": arguments.network,
        "run.cache": arguments.work / codec.replace(":", "-"),
        f"codec.{TARGET}": codec,
    }
    words = [f"{RECIPES}:{arguments.recipe}"]
    for flag, value in flags.items():
        words += [f"--{flag}", str(value)]
    return words


def _cache(arguments: argparse.Namespace, text: str) -> Cache:
    words = _words(arguments, text)
    call("tools/cache_teacher.py", *words)
    return find_caches(arguments.work / text.replace(":", "-"))[0]


def _row_figures(cache: Cache, exact: Cache) -> dict[str, float]:
    """Bytes, entropy and error of a cache's training rows."""
    num_bytes, count, off, energy, symbols = 0, 0, 0.0, 0.0, []
    for shard in cache.shard_ids("train"):
        parts = _parts(cache, shard)
        with cache.reader(shard) as reader:
            spans = reader.shard_index.spans.values()
            num_bytes += sum(sum(span.size) for span in spans)
        wanted = exact.decode(_parts(exact, shard))[TARGET].double()
        found = cache.decode(parts)[TARGET].double()
        centred = wanted - wanted.transpose(0, 1).flatten(1).median(1).values[:, None, None]
        off += float((found - wanted).square().sum())
        energy += float(centred.square().sum())
        count += wanted.numel()
        for i in range(len(wanted)):
            row = {name.partition(".")[2]: part[i : i + 1] for name, part in parts.items()}
            symbols.append(symbols_of(row, wanted[0].numel()))
    entropy = sum(per_channel(torch.stack(column)) for column in zip(*symbols, strict=True))
    rows = count // wanted[0].numel()
    return {
        "bytes_row": round(num_bytes / rows),
        "times_smaller_than_fp16": round(2 * count / num_bytes, 2),
        "bits_value": round(8 * num_bytes / count, 4),
        "entropy_bits_value": round(entropy / count, 4),
        "error": float(f"{off / energy:.4g}"),
    }


def _parts(cache: Cache, shard: ShardId) -> dict[str, torch.Tensor]:
    with cache.reader(shard) as reader:
        rows = [reader.read(i) for i in range(len(reader))]
    return {name: torch.stack([torch.from_numpy(r[name]) for r in rows]) for name in rows[0]}


def _student(arguments: argparse.Namespace, text: str, seed: int) -> dict[str, float]:
    """Train a student unless it is there; return its score and the error of its features."""
    name = f"{text.replace(':', '-')}-seed{seed}"
    weight = 0.0 if text == WITHOUT else arguments.weight
    words = [
        *("--terms.2.weight", str(weight), "--seed", str(seed), "--epochs", str(arguments.epochs)),
        *("--run.workers", "1"),
        *("--run.evaluate-every", str(arguments.epochs), "--run.log-every", "100"),
    ]
    if arguments.encoder:
        words += ["--student.weights", str(arguments.encoder)]
    folder = arguments.work / "runs" / name
    train_once(folder, *_words(arguments, text), *words)
    last = [line for line in read_metrics(folder) if line["kind"] == "val"][-1]
    found = {"miou": last["miou"]}
    if len(last["iou"]) == 2:
        found["foreground_iou"] = last["iou"][1]
    if text != WITHOUT:
        # of this name is no run, and none begins
        words += ["--run.out", str(folder.parent), "--run.name", f"{name}-measured"]
        recipe = recipe_from([*_words(arguments, EXACT), *words])
        found["feature_error"] = _feature_error(recipe, folder)
    return found


@torch.no_grad()
def _feature_error(recipe: Recipe, folder: Path) -> float:
    """Return the error of the projected tap of a run's last checkpoint."""
    context = prepare(recipe)
    checkpoint = newest_checkpoint(folder, print)
    assert checkpoint is not None and context.validation is not None
    load_checkpoint(checkpoint[0], context.distiller, context.optimizer.optimizer)
    context.distiller.eval()
    read = functools.partial(validation_batches, context.validation, recipe.micro_batch, 0, 1)
    off = energy = 0.0
    with closing(read(workers=1, pin=False)) as hosts:
        for host in hosts:
            batch = to_batch(host, torch.device("cpu"), context.cache)
            target = batch.targets[TARGET].double()
            found = context.distiller(batch.image)[context.distiller.outputs[0]].double()
            off += float((found - target).square().sum())
            energy += float(target.square().sum())
    return off / energy


def _mean_and_spread(students: list[dict[str, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in students[0]:
        values = [student[name] for student in students]
        found[name] = round(statistics.mean(values), 5)
        found[f"{name}_deviation"] = round(statistics.stdev(values), 5) if values[1:] else None
        found[f"{name}_seeds"] = [round(value, 5) for value in values]
    return found


def _draw(settings: dict[str, Any], path: Path) -> None:
    """Score and feature error over the bytes of a row."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    score = "foreground_iou" if "foreground_iou" in settings[EXACT] else "miou"
    codecs = {text: found for text, found in settings.items() if text != WITHOUT}
    for axis, name in zip(axes, (score, "feature_error"), strict=True):
        for text, found in codecs.items():
            x = found["times_smaller_than_fp16"]
            axis.errorbar(x, found[name], found[f"{name}_deviation"] or 0, fmt="o", capsize=3)
            axis.annotate(
                text, (x, found[name]), xytext=(4, 4), textcoords="offset points", rotation=60
            )
        axis.set(xscale="log", xlabel="times smaller than fp16", ylabel=name.replace("_", " "))
    axes[0].axhline(settings[WITHOUT][score], linestyle="--", color="grey")
    axes[0].set_title("dashed: without the feature term")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
