"""The whole way on synthetic pictures: train a teacher, cache it, train a student without and with
it, compare.

    stillroom demo [--out runs/demo]

Each step is the command that a user would type; a step whose result is there already is skipped.
Under three minutes on two cores.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stillroom.errors import FailureError
from stillroom.flags import call
from stillroom.jsonfile import read_json, write_json

TRAIN, VALIDATION, SIZE_PX = 384, 80, 48
STILLROOM = [sys.executable, "-m", "stillroom"]
RUNS = {"teacher": "tiny-teacher", "plain": "tiny-plain", "distilled": "tiny"}


def main(out: Path = Path("runs/demo")) -> None:
    """Train a teacher on synthetic shapes, cache it, train students without and with it, and
    compare them.

    Args:
        out: folder for everything the demonstration makes
    """
    out.mkdir(parents=True, exist_ok=True)
    places = ["--data.shards", f"{out / 'shapes'}", "--run.out", f"{out}"]
    teacher = ["--teachers.0.path", f"{out / 'tiny-teacher'}"]
    cached = [*places, "--run.cache", f"{out / 'cache'}", *teacher]
    if not (out / "shapes" / "dataset.json").is_file():
        _make_pictures(out)
    _train(out, "teacher", places)
    if not list(out.glob("cache/*/manifest.json")):
        _step(out, "stage_1", ["cache", "tiny", *cached])
    _train(out, "plain", places)
    _train(out, "distilled", cached)
    _report(out)


def _make_pictures(out: Path) -> None:
    from stillroom.pictures.synthetic import CLASSES, write_shapes

    with tempfile.TemporaryDirectory(dir=out) as name:
        folder = Path(name)
        write_shapes(folder / "train", TRAIN, SIZE_PX)
        write_shapes(folder / "val", VALIDATION, SIZE_PX, first_seed=100_000)
        (folder / "classes.txt").write_text("\n".join(CLASSES))
        train, val = (
            f"folders:{folder / s / 'images'},{folder / s / 'masks'}" for s in ("train", "val")
        )
        options = ["--val", val, "--classes", f"{folder / 'classes.txt'}", "--format", "png"]
        size = ["--size", f"{SIZE_PX}", f"{SIZE_PX}", "--shard-rows", "128"]
        _step(out, "pictures", ["shards", train, "--out", f"{out / 'shapes'}", *options, *size])


def _train(out: Path, role: str, flags: list[str]) -> None:
    recipe = RUNS[role]
    if (out / recipe / "receipt.json").is_file():
        return
    is_begun = bool(list(out.glob(f"{recipe}/checkpoints/step-*")))
    begun = "--run.resume" if is_begun else "--run.overwrite"
    _step(out, role, ["train", recipe, "--run.device", "cpu", *flags, begun])


def _report(out: Path) -> None:
    from stillroom.pictures.dataset import open_pictures
    from stillroom.using.examples import draw_masks
    from stillroom.using.student import load_student, milliseconds

    trained = {role: load_student(out / recipe) for role, recipe in RUNS.items()}
    summary: dict = {
        role: {
            "miou": student.about.get("score", {})["miou"],
            "params": student.num_parameters,
            "ms": round(milliseconds(student), 3),
        }
        for role, student in trained.items()
    }
    cache = next(iter(out.glob("cache/*/manifest.json"))).parent
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    seconds = _read_seconds(out)
    summary |= {"cache_mb": round(size / 1e6, 3), "seconds": seconds}
    write_json(out / "summary.json", summary)
    draw_masks(trained, open_pictures(out / "shapes"), out / "comparison.png")
    print(f"\n{'':10} {'mIoU':>7} {'parameters':>11} {'ms a picture':>13}")
    for role in RUNS:
        line = summary[role]
        print(f"{role:10} {line['miou']:7.4f} {line['params']:11,} {line['ms']:13.2f}")
    steps = ", ".join(f"{name.replace('_', ' ')} {value:.0f} s" for name, value in seconds.items())
    print(f"cache {summary['cache_mb']:.1f} MB; {steps}")
    print(f"{out / 'summary.json'}, {out / 'comparison.png'}")


def _read_seconds(out: Path) -> dict[str, float]:
    """Return the times of steps that an earlier call has done, kept beside their results."""
    path = out / "seconds.json"
    return read_json(path)["seconds"] if path.is_file() else {}


def _step(out: Path, name: str, words: list[str]) -> None:
    """Run a command of ours and keep the time it took."""
    began = time.perf_counter()
    if status := subprocess.run([*STILLROOM, *words], check=False).returncode:
        raise FailureError(
            f"a step of the demonstration failed with status {status}", found=" ".join(words)
        )
    taken = _read_seconds(out) | {name: round(time.perf_counter() - began, 1)}
    write_json(out / "seconds.json", {"seconds": taken})


def run() -> None:
    """Do what the command line says."""
    call(main)
