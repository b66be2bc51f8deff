"""What only a GPU can show, in one command: tests, teachers, both stages, precisions, two ranks.

`make bench-gpu` (or, where make cannot make .venv, `make bench-gpu PYTHON_BIN=python3`, or
`PYTHONPATH=src python benchmarks/gpu.py`) takes under ten minutes on one GPU and writes
`benchmarks/results/gpu_<gpu>_<yyyymm>.json`. Its parts:

- gpu_tests: `pytest -m gpu`;
- onnx_teacher: a detector of YOLOv9-E's size in onnxruntime on CUDA, bound to torch's memory: equal
  to the CPU's answer, and its rate;
- stage_1 and stage_1_onnx: `tools/cache_teacher.py` at `b3-b0-yolo`'s shapes, that detector in
  torch and as ONNX;
- stage_2_fp16, stage_2_bf16, stage_2_fp32: `train_student.py` from that cache and with labels
  alone: seconds a step, device memory, losses;
- step: steps alone, from the cache and with the teachers in them: rates and memory;
- profile: ten steps as a Chrome trace (`benchmarks/rehearsals/steps_<device>.trace.json.gz`);
- two_ranks: the same losses as one process (NCCL on two GPUs, gloo on one);
- extract: stage 1 against its teachers alone, as `benchmarks/extract.py` compares them.

Networks and pictures are made up and the weights random: no score. A part is a process with a time
limit of its own and is written down when it ends; one that fails, or is killed, loses only itself,
and its last lines are its result. The exit status is 1 where one failed, 2 where there is no GPU.

`--device cpu` rehearses: every part with tiny shapes, in about a minute on two cores, what needs a
GPU named as such, the file `gpu_rehearsal_cpu<cores>_<yyyymm>.json`. A rehearsal, or a choice of
parts, goes to `benchmarks/rehearsals/` (ignored by git) unless `--out` says otherwise.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.machine import RESULTS, bench_machine, result_path

from stillroom.errors import UserError
from stillroom.jsonfile import read_json, write_json

# The most seconds of each part, what matters most first; of all together, what is left of ALL_S.
LIMITS_S = {
    "gpu_tests": 100,
    "onnx_teacher": 90,
    "stage_1": 120,
    "stage_2_fp16": 100,
    "stage_2_bf16": 100,
    "stage_2_fp32": 100,
    "step": 100,
    "profile": 60,
    "two_ranks": 100,
    "stage_1_onnx": 120,
    "extract": 100,
}
ALL_S = 570
BUSY = 3  # times as long for a rehearsal, which may share its cores
_GRACE_S = 5  # between being told to end and being killed
_LINES, _WIDTH = 15, 300  # of what a failed part said last


def main() -> int:
    arguments = _arguments()
    if arguments.child is not None:
        return _work(arguments.child, arguments.device, arguments.folder)
    if arguments.device == "cuda":
        _require_gpu()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # here it would hold GPU memory
        machine = pool.submit(bench_machine, arguments.device).result()
    out = arguments.out or _default_out(arguments)
    out.mkdir(parents=True, exist_ok=True)
    name = "gpu" if arguments.device == "cuda" else "gpu_rehearsal"
    path = result_path(name, out, machine.get("gpu"))
    parts: dict[str, Any] = {name: {"outcome": "not run"} for name in arguments.parts}
    body = {"command": _command(arguments), "machine": machine, "parts": parts}
    write_json(path, body)
    patience = 1 if arguments.device == "cuda" else BUSY
    end = time.monotonic() + patience * ALL_S
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        for name in arguments.parts:
            limits_s = (patience * LIMITS_S[name], arguments.limit_s, end - time.monotonic())
            parts[name] = _run(name, arguments.device, Path(folder), min(limits_s))
            write_json(path, body)
            print(f"{name}: {parts[name]['outcome']} in {parts[name]['seconds']} s", flush=True)
            for line in parts[name].get("last_lines", ()):
                print(f"    {line}")
    print(path)
    return int(any(part["outcome"] == "failed" for part in parts.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses")
    names = list(LIMITS_S)
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART")
    parser.add_argument("--out", type=Path, help="folder of the result file")
    parser.add_argument("--limit-s", type=float, default=math.inf, help="most seconds of any part")
    parser.add_argument("--child", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _default_out(arguments: argparse.Namespace) -> Path:
    is_whole = arguments.device == "cuda" and set(arguments.parts) == set(LIMITS_S)
    return RESULTS if is_whole else RESULTS.with_name("rehearsals")


def _command(arguments: argparse.Namespace) -> str:
    words = ["python benchmarks/gpu.py --device", arguments.device]
    if arguments.parts != list(LIMITS_S):
        words += ["--parts", *arguments.parts]
    return " ".join(words)


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        error = UserError(
            "benchmarks/gpu.py needs a CUDA device",
            found=f"none that torch {torch.__version__} can use",
            fix="make bench-gpu on a machine with a GPU (PYTHON_BIN=python3 there where it cannot"
            " make .venv), or rehearse here: make bench-gpu DEVICE=cpu",
        )
        print(error, file=sys.stderr)
        sys.exit(2)


def _work(name: str, device: str, folder: Path) -> int:
    """Be the process of one part: leave its outcome and figures, as far as they came."""
    from bench.gpu_bench import Bench
    from bench.gpu_parts import PARTS

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    figures: dict[str, Any] = {}
    outcome = "failed"
    try:
        outcome = PARTS[name](Bench(device=device, folder=folder), figures)
    except Exception:
        traceback.print_exc()
    finally:
        figures = json.loads(json.dumps(figures), parse_constant=str)  # NaN has no number in JSON
        write_json(folder / f"{name}.json", {"outcome": outcome, **figures})
    return int(outcome == "failed")


def _run(name: str, device: str, folder: Path, limit_s: float) -> dict[str, Any]:
    """Run a part as a process of its own and return what is written down of it."""
    began, log = time.monotonic(), folder / f"{name}.log"
    words = [sys.executable, __file__, "--child", name, "--device", device, "--folder", str(folder)]
    reason = None
    with log.open("w") as file:
        child = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
        try:
            child.wait(max(0.0, limit_s))
        except subprocess.TimeoutExpired:
            reason = f"killed: it took longer than {limit_s:.0f} s"
            _tell(child, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_S)
        finally:
            _tell(child, signal.SIGKILL)  # and what it may have left behind
            child.wait()
    path = folder / f"{name}.json"
    found = read_json(path) if path.exists() else {"outcome": "failed"}
    if child.returncode or reason:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        reason = reason or f"exit status {child.returncode}"
        found |= {"outcome": "failed", "reason": reason, "last_lines": _last(lines, folder)}
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _tell(child: subprocess.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _last(lines: Sequence[str], folder: Path) -> list[str]:
    """Return the last lines, without where things lie on this machine."""
    places = {str(folder): "FOLDER", str(RESULTS.parents[1]): ".", sys.prefix: "PYTHON"}
    last = [line[:_WIDTH] for line in lines if line.strip()][-_LINES:]
    for place, word in places.items():
        last = [line.replace(place, word) for line in last]
    return last


if __name__ == "__main__":
    sys.exit(main())
