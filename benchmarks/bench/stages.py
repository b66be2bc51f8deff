"""Both stages of `b3-b0-yolo` and its like with stand-ins: what they need, and what they left."""

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bench.commands import call
from bench.detector import Layers
from bench.stand_ins import save_convolutions, write_pictures

from stillroom.cache import open_cache
from stillroom.extraction import extract
from stillroom.jsonfile import read_json

_FP16 = ("scale", "skipped_steps")  # what only lines of fp16 may have
_DETECTOR = ((32, 2), (64, 2), (128, 2))
TENSOR = "segmentation_model_34_Concat_output_0"


def pack_shapes(out: Path, size_px: int, num_train: int, num_val: int, *options: object) -> None:
    """Write made-up pictures beside `out` and pack them into it, as a binary task."""
    train = write_pictures(out.with_name("train"), num_train, size_px)
    val = write_pictures(out.with_name("val"), num_val, size_px, first_seed=1000)
    options = ("--val", val, "--classes", 2, *options)
    call("tools/make_shards.py", train, "--out", out, "--size", size_px, size_px, *options)


def people_lite_words(
    folder: Path, size_px: int, num_train: int, num_val: int, shard_rows: int, mask: Layers
) -> list[object]:
    """Make pictures and stand-ins for the teachers of `people-lite`; return it with its flags."""
    pack_shapes(folder / "shards", size_px, num_train, num_val, "--shard-rows", shard_rows)
    save_convolutions(folder / "mask.onnx", mask, sigmoid=True)
    save_convolutions(folder / "detector.onnx", _DETECTOR, inner="input.427")
    teachers = ("--teachers.0.path", folder / "mask.onnx")
    teachers += ("--teachers.1.path", folder / "detector.onnx")
    return ["people-lite", "--data.shards", folder / "shards", *teachers]


def save_b3(path: Path) -> Path:
    """Write the weights of a U-Net EfficientNet-B3 as initialised, in the real file's form."""
    torch.manual_seed(0)
    state = {f"model.{name}": value for name, value in _b3().state_dict().items()}
    torch.save({"state_dict": state}, path)
    return path


def save_detector(path: Path, layers: Layers) -> Path:
    """Write a detector with the inner tensor of the real one's name."""
    return save_convolutions(path, layers, inner=TENSOR)


def b3_parameters() -> int:
    """Return the number of the mask teacher's parameters."""
    return sum(parameter.numel() for parameter in _b3().parameters())


def about_cache(root: Path) -> dict[str, Any]:
    """Return shapes, bytes and rate of the only cache in a folder, which must be complete."""
    (path,) = root.iterdir()
    cache = open_cache(path)
    assert cache.is_complete
    provenance = [cache.reader(shard).provenance for shard in cache.shard_ids()]
    rows = sum(map(cache.shard_rows, cache.shard_ids()))
    stored = {
        part.name: sum(body.stat().st_size for body in path.glob(f"*.zarr/{part.name}/c/0/0/0/0"))
        for part in cache.parts
    }
    return {
        "targets": {name: list(spec.shape) for name, spec in cache.specs.items()},
        "mb_a_row": {name: round(size / rows / 1e6, 3) for name, size in stored.items()},
        "seconds_a_picture": round(sum(shard["seconds"] for shard in provenance) / rows, 3),
        "rows_per_s_of_shards": [shard["rows_per_s"] for shard in provenance],
        "provider": provenance[0]["providers"],
    }


def about_run(run: Path) -> dict[str, Any]:
    """Return steps, rate and terms of a finished run; seconds without those of the first line."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    receipt, batch = (
        read_json(run / "receipt.json"),
        read_json(run / "recipe.json")["recipe"]["batch"],
    )
    assert receipt["teacher_modules"] == []
    rates = [line["rows_per_s"] for line in lines[1:]]
    names = [name for name in lines[0] if name == "loss" or name.startswith("term_")]
    return {
        "device": receipt["device"],
        "processes": receipt["processes"],
        "student_parameters": receipt["parameters"],
        "steps": lines[-1]["step"],
        "batch": batch,
        "seconds_a_step": round(statistics.median(batch / rate for rate in rates), 4),
        "first_line": {name: lines[0][name] for name in names},
        "last_line": {name: lines[-1][name] for name in names},
        **{name: [line.get(name) for line in lines] for name in _FP16 if name in lines[0]},
    }


@contextmanager
def timed(function: str) -> Iterator[list[tuple[float, float]]]:
    """Within, note what each call of a function of stage 1's loop takes: seconds by the clock, and
    of all cores.
    """
    spent: list[tuple[float, float]] = []
    called = getattr(extract, function)

    def calling(*arguments: Any) -> None:
        began, began_core = time.perf_counter(), time.process_time()
        called(*arguments)
        spent.append((time.perf_counter() - began, time.process_time() - began_core))

    setattr(extract, function, calling)
    try:
        yield spent
    finally:
        setattr(extract, function, called)


def _b3() -> torch.nn.Module:
    import segmentation_models_pytorch as smp  # takes two seconds

    return smp.Unet("timm-efficientnet-b3", encoder_weights=None, classes=1)
