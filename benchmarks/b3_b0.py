"""Both stages of `b3-b0-yolo` at its real shapes: parameters, bytes, seconds and memory; no score.

`python benchmarks/b3_b0.py` packs eight pictures of shapes at 640x640, makes a stand-in for the
detector (three convolutions and the inner tensor `segmentation_model_34_Concat_output_0`,
1024x80x80, with more after it) and a randomly initialised U-Net EfficientNet-B3, runs stage 1 and
three steps of stage 2 in batches of two, each in a process of its own, and writes
`benchmarks/results/b3_b0_cpu<cores>_<yyyymm>.json`. About 100 seconds on two cores. Stage 1's
seconds are not those of the real detector: the stand-in does 4 GMAC a picture. Real pictures:
`--source voc:PATH`, a folder with a train and a val list of a few names. `--gates refuse warn off`
runs stage 1 once per gate (a random teacher is refused with status 2).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench.commands import Finished, call
from bench.machine import save
from bench.stages import (
    about_cache,
    about_run,
    b3_parameters,
    pack_shapes,
    save_b3,
    save_detector,
)

LAYERS = ((32, 2), (64, 2), (1024, 2))
SIZE_PX, NUM_TRAIN, NUM_VAL = 640, 6, 2


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _pack(folder, arguments.source)
        flags = ["--data.shards", folder / "shards", *_teachers(folder), "--student.weights"]
        flags += ["None", "--run.device", "cpu", "--batch", 2, "--micro-batch", 2]
        gates = {}
        for gate in arguments.gates:
            cache = ["--run.cache", folder / f"cache-{gate}"]
            status = 2 if gate == "refuse" else 0
            words = ["b3-b0-yolo", *flags, *cache, "--gate", gate]
            stage_1 = call("tools/cache_teacher.py", *words, status=status)
            gates[gate] = _gate(stage_1, status)
        cache = ["--run.cache", folder / f"cache-{arguments.gates[-1]}"]
        words = ["b3-b0-yolo", *flags, *cache, "--run.out", folder / "runs", "--epochs", 1]
        stage_2 = call("train_student.py", *words, "--run.log-every", 1)
        figures = {
            "size_px": SIZE_PX,
            "gates": gates,
            "teacher_parameters": b3_parameters(),
            "stage_1": about_cache(folder / f"cache-{arguments.gates[-1]}") | _costs(stage_1),
            "stage_2": about_run(folder / "runs" / "b3-b0-yolo") | _costs(stage_2),
        }
    save("b3_b0", _command(arguments), figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", help="voc:PATH with both lists; made-up pictures if absent")
    gates = ("refuse", "warn", "off")
    parser.add_argument("--gates", nargs="+", choices=gates, default=["off"], help="one run each")
    arguments = parser.parse_args()
    if arguments.gates[-1] == "refuse":
        parser.error("the last gate must not refuse: stage 2 needs its cache")
    return arguments


def _command(arguments: argparse.Namespace) -> str:
    """Return what was typed, without where the pictures lie."""
    words = ["python", "benchmarks/b3_b0.py", "--gates", *arguments.gates]
    if arguments.source is not None:
        kind, _, path = arguments.source.partition(":")
        words += ["--source", f"{kind}:{Path(path).name.upper()}"]
    return " ".join(words)


def _pack(folder: Path, source: str | None) -> None:
    if source is None:
        pack_shapes(folder / "shards", SIZE_PX, NUM_TRAIN, NUM_VAL)
        return
    out = ("--out", folder / "shards")
    call("tools/make_shards.py", source, *out, "--size", SIZE_PX, SIZE_PX)


def _teachers(folder: Path) -> list[object]:
    """Make both teachers' files and return the flags that name them."""
    detector = save_detector(folder / "detector.onnx", LAYERS)
    return ["--teachers.0.path", save_b3(folder / "b3.pth"), "--teachers.1.path", detector]


def _gate(done: Finished, status: int) -> dict[str, Any]:
    outputs = [*done.lines("quality gate"), *done.lines("warning:")]
    if status:
        outputs += ["stillroom: " + done.outputs.partition("stillroom: ")[2].strip()]
    return {"status": status, "seconds": round(done.seconds, 1), "said": outputs}


def _costs(done: Finished) -> dict[str, Any]:
    return {"seconds": round(done.seconds, 1), "peak_mb": round(done.peak_mb)}


if __name__ == "__main__":
    main()
