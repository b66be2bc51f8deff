"""The parts of `make bench-gpu`. Each can run alone: what it needs and does not find it makes."""

import functools
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from bench.commands import ROOT, call, call_ranks
from bench.detector import convolutions, count_macs
from bench.extraction_rate import compare
from bench.gpu_bench import BATCH, RECIPES, Bench
from bench.machine import RESULTS
from bench.stages import TENSOR, about_cache, about_run, pack_shapes, save_detector
from bench.step_times import profile_steps, step_times
from torch import Tensor

from stillroom.cli import recipe_from
from stillroom.extraction.process import process_context
from stillroom.recipe import Recipe
from stillroom.teachers.configs import OnnxTeacher
from stillroom.training.log import read_metrics

PASSED, NEEDS_GPU = "passed", "needs a GPU"
MAX_RELATIVE_L2 = 1e-4  # TF32 would give about 1e-3
MAX_RELATIVE_ERROR = 1e-3  # of the largest value
MAX_FIRST_LOSS = 1e-4  # relative difference of one rank's and two ranks' loss, same weights
MAX_LOSS = 1e-2  # the same of later steps: AdamW enlarges what another order of sums changes


def gpu_tests(bench: Bench, figures: dict[str, Any]) -> str:
    """Run the tests marked `gpu`, found by that word in their files."""
    files = [str(p) for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in _text(p)]
    report = bench.folder / "tests.xml"
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, check=False)
    if report.exists():
        figures |= _counts(report)
    if done.returncode:
        raise RuntimeError(f"pytest ended with status {done.returncode}")
    if bench.device == "cpu":
        return NEEDS_GPU
    if not figures["passed"]:
        raise RuntimeError("no test ran")
    return PASSED


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _counts(report: Path) -> dict[str, Any]:
    found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if kinds else "passed"
        found[kind].append(f"{case.get('classname')}::{case.get('name')}")
    return {kind: len(names) for kind, names in found.items()} | {"failures": found["failed"]}


def onnx_teacher(bench: Bench, figures: dict[str, Any]) -> str:
    """Compare the detector's answers on the device with the CPU's, then time it."""
    scale = bench.scale
    path = save_detector(bench.folder / "detector.onnx", scale.layers)
    teacher = OnnxTeacher(target="yolo", path=str(path), tensor=TENSOR, kind="features")
    image = torch.rand((BATCH, 3, scale.size_px, scale.size_px), generator=_seeded(0))
    wanted = teacher.build("cpu")(image)["yolo"]
    with torch.inference_mode():
        plain = convolutions(scale.layers)(image)
    figures["gmac_a_picture"] = round(count_macs(scale.layers, scale.size_px) / 1e9, 3)
    figures["shape"] = list(wanted.shape[1:])
    figures["limits"] = {"relative_l2": MAX_RELATIVE_L2, "relative_max": MAX_RELATIVE_ERROR}
    figures["cpu_against_torch"] = _difference(wanted, plain)
    for batch in scale.onnx_batches:
        built = teacher.build(bench.device)  # it keeps to its largest batch: one for each size
        figures["provider"] = built.provider
        if bench.device != "cpu" and batch <= len(image):
            parts = [built(part.to(bench.device))["yolo"].cpu() for part in image.split(batch)]
            figures[f"device_against_cpu_batch_{batch}"] = _difference(torch.cat(parts), wanted)
        figures[f"batch_{batch}"] = _rate(built, batch, bench)
    for name, found in figures.items():
        if "against" in name:
            _require_below(name, found["relative_l2"], MAX_RELATIVE_L2)
            _require_below(name, found["relative_max"], MAX_RELATIVE_ERROR)
    return PASSED


def _difference(found: Tensor, wanted: Tensor) -> dict[str, float]:
    error, wanted = (found - wanted).double(), wanted.double()
    return {
        "relative_l2": float(error.norm() / wanted.norm()),
        "relative_max": float(error.abs().max() / wanted.abs().max()),
        "largest_value": float(wanted.abs().max()),
    }


def _rate(built: Any, batch: int, bench: Bench) -> dict[str, float]:
    size = bench.scale.size_px
    image = torch.rand((batch, 3, size, size), generator=_seeded(batch)).to(bench.device)
    seconds = []
    for run in range(bench.scale.num_runs + 2):  # two to warm up
        began = time.perf_counter()
        built(image)
        if bench.device == "cuda":
            torch.cuda.synchronize()
        if run >= 2:
            seconds.append(time.perf_counter() - began)
    picture_s = statistics.median(seconds) / batch
    macs = count_macs(bench.scale.layers, size)
    return {
        "ms_a_picture": round(1e3 * picture_s, 3),
        "pictures_per_s": round(1 / picture_s, 1),
        "tflop_per_s": round(2e-12 * macs / picture_s, 3),
    }


def _seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def stage_1(bench: Bench, figures: dict[str, Any]) -> str:
    """Cache what the mask teacher and the detector, both in torch, say; stage 2 reads that."""
    shutil.rmtree(bench.folder / "cache", ignore_errors=True)
    figures |= _stage_1(bench, bench.folder / "cache", *bench.with_torch_detector())
    return PASSED


def stage_1_onnx(bench: Bench, figures: dict[str, Any]) -> str:
    """Do the same with the detector as ONNX."""
    cache = bench.folder / "cache-onnx"
    detector = save_detector(bench.folder / "detector.onnx", bench.scale.layers)
    teachers = ("--teachers.0.path", bench.b3(), "--teachers.1.path", detector)
    words = ("b3-b0-yolo", *bench.flags(), *teachers, "--run.cache", cache)
    figures |= _stage_1(bench, cache, *words)
    return PASSED


def _stage_1(bench: Bench, cache: Path, *words: object) -> dict[str, Any]:
    found = bench.measured("tools/cache_teacher.py", *words, "--gate", "off")
    del found["losses"]
    about = about_cache(cache)
    scale = bench.scale
    return {
        "detector_gmac_a_picture": round(count_macs(scale.layers, scale.size_px) / 1e9, 3),
        "rows_per_s": statistics.median(about["rows_per_s_of_shards"][1:]),  # the first warms up
        **about,
        **found,
    }


def extract(bench: Bench, figures: dict[str, Any], repeats: int = 3) -> str:
    """Compare the rate of stage 1 with that of its teachers alone, in larger shards."""
    scale, shards = bench.scale, bench.folder / "extract" / "shards"
    shutil.rmtree(shards.parent, ignore_errors=True)
    shards.parent.mkdir()
    rows = ("--shard-rows", 4 * scale.shard_rows)
    pack_shapes(shards, scale.size_px, 4 * scale.num_train, scale.num_val, *rows)
    words = [*bench.with_torch_detector(), "--data.shards", shards]
    place = process_context(bench.device, {})
    if bench.device == "cpu":
        torch.set_num_threads(1)  # a rehearsal may share its cores
    figures |= compare(recipe_from(list(map(str, words))), place, repeats)
    return PASSED


def _ensure_cache(bench: Bench) -> None:
    """Make the cache that stage 2 reads, or what is missing of it."""
    root, words = bench.folder / "cache", (*bench.with_torch_detector(), "--gate", "off")
    if not list(root.glob("*/manifest.json")):
        call("tools/cache_teacher.py", *words, environment=bench.environment)


def stage_2(bench: Bench, figures: dict[str, Any], precision: str) -> str:
    """Train the student with what the teachers said and with labels alone, in one precision."""
    if precision == "fp16" and bench.device == "cpu":
        figures["reason"] = "the trainer refuses fp16 on a CPU"
        return NEEDS_GPU
    _ensure_cache(bench)
    kinds = {
        "distilled": bench.with_torch_detector(),
        "alone": [f"{RECIPES}:b0_alone", *bench.flags()],
    }
    for kind, words in kinds.items():
        figures[kind] = _train(bench, f"{precision}-{kind}", *words, "--precision", precision)
    figures["tf32_convolutions"] = torch.backends.cudnn.allow_tf32  # of fp32; torch's default
    for name in ("seconds_a_step", "peak_allocated_mb"):
        if name in figures["alone"]:
            ratio = figures["distilled"][name] / figures["alone"][name]
            figures[f"distilled_over_alone_{name}"] = round(ratio, 3)
    return PASSED


def _train(bench: Bench, name: str, *words: object) -> dict[str, Any]:
    scale, runs = bench.scale, bench.folder / "runs"
    length = ("--epochs", scale.epochs, "--run.evaluate-every", scale.epochs)
    place = ("--run.out", runs, "--run.name", name, "--run.log-every", scale.log_every)
    found = bench.measured("train_student.py", *words, *length, *place)
    losses = found.pop("losses")
    about = about_run(runs / name)
    return {
        "rows_per_s": round(BATCH / about["seconds_a_step"], 2),
        "first_step_loss": losses[0],
        "last_step_loss": losses[-1],
        "losses_not_finite": losses.count(None),  # the trainer ends where it skips no such step
        **about,
        **found,
    }


def two_ranks(bench: Bench, figures: dict[str, Any]) -> str:
    """Train with one process, then with two: NCCL on two GPUs, otherwise gloo on one device."""
    _ensure_cache(bench)
    gpus = torch.cuda.device_count() if bench.device == "cuda" else 0
    runs, threads = bench.folder / "runs", {"OMP_NUM_THREADS": "1"}
    words = [*bench.with_torch_detector(), "--micro-batch", BATCH // 2, "--precision", "fp32"]
    words += ["--epochs", 1, "--run.log-every", 1, "--run.out", runs, "--run.name"]
    call("train_student.py", *words, "one-rank", environment=bench.environment | threads)
    if gpus >= 2:
        figures["backend"] = "nccl"
        ranks = [{"LOCAL_RANK": str(rank), **threads} for rank in range(2)]
        call_ranks("train_student.py", *words, "two-ranks", environments=ranks)
    else:
        figures["backend"] = "gloo"
        ranks = [{"LOCAL_RANK": "0", **bench.environment, **threads}] * 2
        script = ("benchmarks/bench/gloo_rank.py", ROOT / "train_student.py")
        call_ranks(*script, *words, "two-ranks", environments=ranks)
    one, two = (about_run(runs / name) for name in ("one-rank", "two-ranks"))
    figures |= {name: two[name] for name in ("device", "processes")}
    figures |= {"seconds_a_step": {"one": one["seconds_a_step"], "two": two["seconds_a_step"]}}
    if (one["processes"], two["processes"]) != (1, 2):
        raise RuntimeError(f"{one['processes']} and {two['processes']} processes trained")
    _compare_losses(figures, runs)
    return PASSED


def _compare_losses(figures: dict[str, Any], runs: Path) -> None:
    one, two = (
        [line["loss"] for line in read_metrics(runs / name) if line["kind"] == "train"]
        for name in ("one-rank", "two-ranks")
    )
    differences = [abs(a - b) / abs(a) for a, b in zip(one, two, strict=True)]
    figures |= {
        "losses": {"one": one, "two": two},
        "limits": {"first_step": MAX_FIRST_LOSS, "later_steps": MAX_LOSS},
        "relative_difference_first_step": differences[0],
        "relative_difference_largest": max(differences),
    }
    _require_below("the first step's loss", differences[0], MAX_FIRST_LOSS)
    _require_below("a later step's loss", max(differences), MAX_LOSS)


def _require_below(name: str, found: float, limit: float) -> None:
    if not found <= limit:
        raise RuntimeError(f"{name} differs by {found:.3g}, more than {limit:.3g}")


def step(bench: Bench, figures: dict[str, Any]) -> str:
    """Compare steps alone, from the cache and with the teachers in them."""
    _ensure_cache(bench)
    rounds, steps = (3, 12) if bench.device == "cuda" else (1, 1)
    figures |= step_times(_in_process(bench, "steps"), rounds, steps)
    return PASSED


def profile(bench: Bench, figures: dict[str, Any]) -> str:
    """Leave a Chrome trace of ten steps beside the results."""
    _ensure_cache(bench)
    path = RESULTS.with_name("rehearsals") / f"steps_{bench.device}.trace.json.gz"
    figures |= profile_steps(_in_process(bench, "profiled"), path)
    return PASSED


def _in_process(bench: Bench, name: str) -> Recipe:
    """Return the recipe for a run in this process."""
    out = ("--run.out", bench.folder / "runs", "--run.name", name, "--gate", "off")
    return recipe_from([str(word) for word in (*bench.with_torch_detector(), *out)])


PARTS: dict[str, Callable[[Bench, dict[str, Any]], str]] = {
    "gpu_tests": gpu_tests,
    "onnx_teacher": onnx_teacher,
    "stage_1": stage_1,
    "stage_2_fp16": functools.partial(stage_2, precision="fp16"),
    "stage_2_bf16": functools.partial(stage_2, precision="bf16"),
    "stage_2_fp32": functools.partial(stage_2, precision="fp32"),
    "step": step,
    "profile": profile,
    "two_ranks": two_ranks,
    "stage_1_onnx": stage_1_onnx,
    "extract": extract,
}
