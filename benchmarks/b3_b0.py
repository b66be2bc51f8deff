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
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from bench.commands import Finished, call
from bench.machine import save
from bench.stand_ins import save_convolutions, write_pictures

from stillroom.cache import open_cache
from stillroom.jsonfile import read_json

TENSOR = "segmentation_model_34_Concat_output_0"
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
            "stage_1": _stage_1(stage_1, folder / f"cache-{arguments.gates[-1]}"),
            "stage_2": _stage_2(stage_2, folder / "runs" / "b3-b0-yolo"),
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
    options: list[object] = ["--size", SIZE_PX, SIZE_PX]
    if source is None:
        source = write_pictures(folder / "train", NUM_TRAIN, SIZE_PX)
        val = write_pictures(folder / "val", NUM_VAL, SIZE_PX, first_seed=1000)
        options += ["--val", val, "--classes", 2]
    call("tools/make_shards.py", source, "--out", folder / "shards", *options)


def _teachers(folder: Path) -> list[object]:
    """Make both teachers' files and return the flags that name them."""
    torch.manual_seed(0)
    network = smp.Unet("timm-efficientnet-b3", encoder_weights=None, classes=1)
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, folder / "b3.pth")
    detector = save_convolutions(folder / "detector.onnx", LAYERS, inner=TENSOR)
    return ["--teachers.0.path", folder / "b3.pth", "--teachers.1.path", detector]


def _gate(done: Finished, status: int) -> dict[str, Any]:
    outputs = [*done.lines("quality gate"), *done.lines("warning:")]
    if status:
        outputs += ["stillroom: " + done.outputs.partition("stillroom: ")[2].strip()]
    return {"status": status, "seconds": round(done.seconds, 1), "said": outputs}


def _stage_1(done: Finished, root: Path) -> dict[str, Any]:
    (path,) = root.iterdir()
    cache = open_cache(path)
    assert cache.is_complete
    rows = sum(map(cache.shard_rows, cache.shard_ids()))
    stored = {
        part.name: sum(body.stat().st_size for body in path.glob(f"*.zarr/{part.name}/c/0/0/0/0"))
        for part in cache.parts
    }
    making = sum(cache.reader(shard).provenance["seconds"] for shard in cache.shard_ids())
    return {
        "targets": {name: list(spec.shape) for name, spec in cache.specs.items()},
        "mb_a_row": {name: round(size / rows / 1e6, 3) for name, size in stored.items()},
        "seconds_a_picture": round(making / rows, 2),
        "seconds": round(done.seconds, 1),
        "peak_mb": round(done.peak_mb),
        "teacher_parameters": _b3_parameters(),
    }


def _stage_2(done: Finished, run: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    receipt = read_json(run / "receipt.json")
    assert receipt["teacher_modules"] == []
    names = [name for name in steps[0] if name == "loss" or name.startswith("term_")]
    return {
        "student_parameters": receipt["parameters"],
        "steps": len(steps),
        "batch": 2,
        "seconds_a_step": round(statistics.median(2 / line["rows_per_s"] for line in steps), 2),
        "first_step": {name: steps[0][name] for name in names},
        "last_step": {name: steps[-1][name] for name in names},
        "seconds": round(done.seconds, 1),
        "peak_mb": round(done.peak_mb),
    }


def _b3_parameters() -> int:
    network = smp.Unet("timm-efficientnet-b3", encoder_weights=None, classes=1)
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
