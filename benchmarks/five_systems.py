"""Where distillation helps: one of the five systems at small size, a teacher, students without and
with it, several seeds, equal numbers of steps.

    python benchmarks/five_systems.py S0 --shards shards/street --steps 2000 --out OUT
    python benchmarks/five_systems.py rare --shards shards/street --label-share .05 --out OUT
    python benchmarks/five_systems.py S2 --shards shards/people --unlabelled shards/frames --out OUT
    python benchmarks/five_systems.py S4 --shards shards/groups --unet TEACHER --out OUT
    python benchmarks/five_systems.py S3 --shards shards/people --out OUT --teachers TEACHERS

with TEACHERS = "--teachers.0.path MASK.onnx --teachers.1.path DETECTOR.onnx --teachers.1.tensor T"

Every step is a command that a user would type; what OUT holds already is not done again, so it can
be stopped and called again, and with more seeds. Each student is evaluated alone on the shards'
validation split. Writes `five_systems_<system>_<hardware>_<yyyymm>.json` and `.png` into
`benchmarks/results` (`--results`). Time: as long as the trainings take; S0's teacher does 2.8
pictures of 96x128 a second on one thread of a shared machine, its student 17.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.commands import call, train_once
from bench.machine import RESULTS, save

from stillroom.cli import named_recipe, run_command
from stillroom.errors import UserError
from stillroom.jsonfile import read_json, write_json
from stillroom.metrics import SCORES
from stillroom.pictures.dataset import open_pictures
from stillroom.recipes import RECIPES
from stillroom.training.log import read_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Recipes and flags; in flags {run} is the teacher's run, {classes} those of the pictures."""

    teacher: tuple[str, str] | None  # recipe and flags; None: files that --teachers names
    students: dict[str, tuple[str, str]]  # by label; the cache is made for the last one
    points: str = "--teachers.0.path {run}"  # what students that are distilled say of the teacher
    unlabelled: tuple[str, ...] = ()  # labels of students that see no labels
    num_micro_batches: int = 1  # of a step: each moves BatchNorm's running buffers


_RANDOM = "--student.weights None"
_FAST = "--optimizer.lr 1e-3"
_S0 = "--student.classes {classes} --optimizer.lr 1e-3 --optimizer.lr-limits 1e-3 1e-3"
_S1 = f"--student.classes {{classes}} {_RANDOM} {_FAST}"
_S4 = f"--student.cells 16 12 --student.channels 48 --student.base 12 --data.regions 32 24 {_FAST}"
_S4 += " --student.encoder tu-mobilenetv2_035 --student.mean .5 .5 .5 --student.std .5 .5 .5"
_ENCODER = "--student.weights {encoder}"
_S4_STUDENT = f"{_S4} {_ENCODER}"
_RARE = f"{_ENCODER} --student.classes {{classes}}"
_OWN = str(Path(__file__).with_name("rare_classes.py"))
SYSTEMS = {
    "S0": System(
        teacher=(
            "unet-fastlite-teacher",
            f"{_RANDOM} --student.backbone resnet50 --freeze-epochs 0 {_S0}",
        ),
        students={
            "without": ("unet-fastlite-plain", _S0),
            "taps": ("unet-fastlite", _S0),
        },
    ),
    "S1": System(
        teacher=("fcn-mobilenet-teacher", f"{_RANDOM} --student.classes {{classes}}"),
        students={
            "without": ("fcn-mobilenet-plain", _S1),
            "response": ("fcn-mobilenet-response", _S1),
            "feature": ("fcn-mobilenet-feature", _S1),
        },
        points="--teachers.0.weights {run}/student.safetensors --teachers.0.classes {classes}",
        num_micro_batches=4,  # its momentum of .01 lags far behind in a short run
    ),
    "S2": System(
        teacher=("soft-binary-teacher", f"--student.width 16 {_FAST}"),
        students={
            "without": ("soft-binary-teacher", f"--student.width 4 {_FAST}"),
            "soft answers": ("soft-binary", _FAST),
        },
        unlabelled=("soft answers",),
    ),
    "S3": System(
        teacher=None,
        students={
            "without": ("people-lite", "--terms.0.weight 0 --terms.1.weight 0 --terms.4.weight 0"),
            "logits": ("people-lite", "--terms.4.weight 0"),
            "logits and feature": ("people-lite", ""),
        },
    ),
    "S4": System(
        teacher=("b3-b0-hierarchical-teacher", f"--student.unet {{unet}} {_S4}"),
        students={
            "without": ("b3-b0-hierarchical-plain", _S4_STUDENT),
            "logits": (
                "b3-b0-hierarchical",
                f"{_S4_STUDENT} --terms.6.weight 0 --terms.7.weight 0",
            ),
            "logits and heads": ("b3-b0-hierarchical", _S4_STUDENT),
        },
    ),
    "rare": System(  # which distance brings a teacher's rare classes to its student
        teacher=("street-teacher", f"{_ENCODER} --student.classes {{classes}}"),
        students={
            "without": ("street-few-plain", _RARE),
            "pixels": (f"{_OWN}:pixels", _RARE),
            "balanced pixels": (f"{_OWN}:pixels", f"{_RARE} --terms.2.class-weights balanced"),
            "channels": (f"{_OWN}:channels", _RARE),
            "pixels and channels": (f"{_OWN}:both", _RARE),
        },
    ),
}


def main() -> None:
    arguments = _arguments()
    out, system = arguments.out, SYSTEMS[arguments.system]
    _claim(out, arguments)
    scores: dict[str, list[dict[str, Any]]] = {}
    if system.teacher is not None:
        scores["teacher"] = [_trained(arguments, "teacher", *system.teacher, 0)]
    cached, flags = list(system.students.values())[-1]
    _cache(arguments, cached, flags)
    for seed in arguments.seeds:
        for label, (recipe, flags) in system.students.items():
            scores.setdefault(label, []).append(_trained(arguments, label, recipe, flags, seed))
    name = f"five_systems_{arguments.system.lower()}"
    figures = {"options": _options(arguments)} | {
        label: _summary(runs) | {"runs": runs} for label, runs in scores.items()
    }
    path = save(name, _command(arguments), figures, arguments.results)
    _draw(scores, arguments.system, path.with_suffix(".png"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    add = parser.add_argument
    add("system", choices=[name for name, system in SYSTEMS.items() if _is_there(system)])
    add("--shards", type=Path, required=True, help="labelled picture shards")
    add("--unlabelled", type=Path, help="S2: shards without labels (default: --shards)")
    add("--out", type=Path, required=True, help="folder of runs and cache")
    add("--steps", type=int, default=1000, help="of a student, rounded to epochs")
    add("--teacher-steps", type=int, default=2000)
    add("--batch", type=int, default=8)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--label-share", type=float, default=1.0, help="of the masks, that students see")
    add("--views", type=int, default=2, help="kept of each picture, where the recipe draws some")
    add("--teachers", default="", help="flags of the teachers' files, in one word (S3)")
    add("--encoder", default="None", help="rare, S4: a timm file of mobilenetv2_035")
    add("--unet", default="None", help="S4: weights of people-teacher, in the teacher and frozen")
    add("--device", default="cpu")
    add("--results", type=Path, default=RESULTS, help="folder of the figures")
    return parser.parse_args()


def _is_there(system: System) -> bool:
    named = [*system.students.values(), *([] if system.teacher is None else [system.teacher])]
    return all(recipe in RECIPES or ":" in recipe for recipe, _ in named)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what must be equal of all runs in a folder."""
    names = ("system", "steps", "teacher_steps", "batch", "label_share", "views")
    found = {name: getattr(arguments, name) for name in names}
    return found | {"pictures": open_pictures(arguments.shards).digest}


def _command(arguments: argparse.Namespace) -> str:
    """Return what was typed, without where files lie."""
    words = [f"--{n.replace('_', '-')} {v}" for n, v in _options(arguments).items()]
    seeds = " ".join(map(str, arguments.seeds))
    return " ".join(
        ["python benchmarks/five_systems.py", arguments.system, *words[1:-1], "--seeds", seeds]
    )


def _claim(out: Path, arguments: argparse.Namespace) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path, wanted = out / "options.json", {"options": _options(arguments)}
    if path.is_file() and (found := read_json(path)) != wanted:
        raise UserError(f"{out} holds runs with other options", found=found, wanted=wanted)
    write_json(path, wanted)


def _trained(
    arguments: argparse.Namespace, label: str, recipe: str, flags: str, seed: int
) -> dict[str, Any]:
    """Train and evaluate one run, as far as that is not done; return its figures."""
    name = f"{label.replace(' ', '-')}-{seed}"
    run = arguments.out / "runs" / name
    steps = arguments.teacher_steps if label == "teacher" else arguments.steps
    words = [
        recipe,
        *_flags(arguments, label, recipe, flags),
        *_length(arguments, label, recipe, steps),
    ]
    train_once(run, *words, "--seed", seed)
    if not (run / "evaluation.json").is_file():
        call("tools/evaluate.py", run, "--shards", arguments.shards, "--device", arguments.device)
    return _figures(run, seed)


def _cache(arguments: argparse.Namespace, recipe: str, flags: str) -> None:
    """Let stage 1 make, or find complete, the cache that all students read."""
    label = list(SYSTEMS[arguments.system].students)[-1]
    words = [recipe, *_flags(arguments, label, recipe, flags)]
    call("tools/cache_teacher.py", *words, "--gate", "warn")


def _flags(arguments: argparse.Namespace, label: str, recipe: str, flags: str) -> list[object]:
    system = SYSTEMS[arguments.system]
    default = named_recipe(recipe)
    if default.teachers:
        flags += f" {system.points}" if system.teacher is not None else f" {arguments.teachers}"
    classes = len(open_pictures(arguments.shards).classes)
    run = arguments.out / "runs" / "teacher-0"
    flags = flags.format(run=run, classes=classes, encoder=arguments.encoder, unet=arguments.unet)
    words: list[object] = [*flags.split(), "--data.shards", _shards(arguments, label)]
    words += ["--run.cache", arguments.out / "cache", "--run.device", arguments.device]
    micro_batch = arguments.batch // system.num_micro_batches
    words += ["--batch", arguments.batch, "--micro-batch", micro_batch]
    if default.views.count > 1:
        words += ["--views.count", arguments.views]
    if label != "teacher" and arguments.label_share < 1:
        words += ["--data.label-share", arguments.label_share]
    return words


def _length(arguments: argparse.Namespace, label: str, recipe: str, steps: int) -> list[object]:
    """Return flags for so many steps, rounded to epochs, and for ten evaluations on the way; no run
    ends before.
    """
    pictures = open_pictures(_shards(arguments, label))
    rows = named_recipe(recipe).num_train_rows(pictures)
    epochs = max(1, round(steps / (rows // arguments.batch)))
    words: list[object] = ["--epochs", epochs, "--early-stopping", "None"]
    return [*words, "--run.evaluate-every", max(1, epochs // 10)]


def _shards(arguments: argparse.Namespace, label: str) -> Path:
    is_blind = label in SYSTEMS[arguments.system].unlabelled
    return (arguments.unlabelled if is_blind else None) or arguments.shards


def _figures(run: Path, seed: int) -> dict[str, Any]:
    found, receipt = read_json(run / "evaluation.json"), read_json(run / "receipt.json")
    curve = [
        [line["step"], next(line[name] for name in SCORES if name in line)]
        for line in read_metrics(run)
        if line["kind"] == "val"
    ]
    score = read_json(run / "student.json")["score"]
    return {
        "seed": seed,
        "score": found.get("target_iou", found["miou"]),
        "iou": found["iou"],
        "parameters": receipt["parameters"],
        "steps": receipt["steps"],
        "seconds": receipt["seconds"],
        "curve_of": next(SCORES[name] for name in SCORES if score.get(name) is not None),
        "curve": curve,
    }


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    scores = [run["score"] for run in runs]
    classes = {
        name: [run["iou"][name] for run in runs if run["iou"][name] is not None]
        for name in runs[0]["iou"]
    }
    return {
        "score": round(mean(scores), 4),
        "spread": round(stdev(scores), 4) if len(scores) > 1 else None,
        "iou": {n: round(mean(values), 4) if values else None for n, values in classes.items()},
    }


def _draw(scores: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Draw every run's score over its steps, and each mean as a thick line, dotted where it is
    agreement; the teacher's as one level.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (label, runs) in enumerate(scores.items()):
        colour, text = f"C{number}", f"{label}: {mean(run['score'] for run in runs):.3f}"
        if label == "teacher":
            axes.axhline(runs[0]["score"], color=colour, ls="--", label=text)
            continue
        curves, what = [dict(run["curve"]) for run in runs], runs[0]["curve_of"]
        style = "o:" if what == "agreement" else "o-"
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color=colour, lw=0.8, alpha=0.5)
        steps = sorted(set.intersection(*map(set, curves)))
        means = [mean(curve[step] for curve in curves) for step in steps]
        axes.plot(steps, means, style, color=colour, lw=2, ms=4, label=f"{text} (curve: {what})")
    axes.set(xlabel="step", ylabel="validation mIoU, target IoU (S4) or agreement", title=title)
    axes.grid(alpha=0.3)
    axes.legend(title="score of the best students", fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run_command(main)
