"""Every usual fault of a teacher, on a real network: what does the quality gate say?

    python benchmarks/quality_gate.py SHARDS NETWORK.onnx --kind probabilities
    python benchmarks/quality_gate.py SHARDS NETWORK.onnx --kind logits --size 513 513
        --mean .5 .5 .5 --std .5 .5 .5

SHARDS are packed, labelled pictures; the flags say the network's true preprocessing. It is declared
truly, with the other channel order, with each other usual normalisation, with both wrong; then the
network is broken (`bench/broken_onnx.py`). The exit status is 1 unless the true one passes and
every other is refused. About 10 minutes a network on a busy core.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import onnx
from bench.machine import save

from stillroom.extraction.gate import Verdict, gate_pictures, judge
from stillroom.extraction.preprocessing import other_preprocessings
from stillroom.networks.normalise import Normalise
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.teachers.configs import OnnxTeacher

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "extraction"))

from broken_onnx import broken

FLOOR = 0.5
SOUND = ("none", "batch of one")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("network", type=Path)
    parser.add_argument("--kind", required=True)
    parser.add_argument("--size", type=int, nargs=2)
    parser.add_argument("--channels", default="RGB")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--mean", type=float, nargs=3, default=(0.0, 0.0, 0.0))
    parser.add_argument("--std", type=float, nargs=3, default=(1.0, 1.0, 1.0))
    words = parser.parse_args()
    true = OnnxTeacher(
        target="mask",
        path=str(words.network),
        kind=words.kind,
        size=words.size and tuple(words.size),
        channels=words.channels,
        scale=words.scale,
        mean=tuple(words.mean),
        std=tuple(words.std),
    )
    rows = measure(true, open_pictures(words.shards))
    result = {"network": words.network.name, "floor": FLOOR, "rows": rows}
    flags = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    command = " ".join(["python benchmarks/quality_gate.py", *flags])
    save(f"quality_gate_{words.network.stem}", command, result)
    if not all(row["passed"] == row["fault"].startswith(SOUND) for row in rows):
        raise SystemExit("some verdict is wrong")


def measure(true: OnnxTeacher, pictures: PictureSet) -> list[dict]:
    """Judge the network with each fault; one row each."""
    rows = []

    def add(fault: str, config: OnnxTeacher) -> None:
        began = time.process_time()
        (verdict,) = judge(
            config, config.build("cpu"), gate_pictures(pictures), len(pictures.classes), FLOOR
        )
        rows.append(_row(fault, verdict, time.process_time() - began))
        print(rows[-1], flush=True)

    add("none", true)
    preprocessing = Normalise(true.mean, true.std, true.scale, true.channels)
    for label, other in other_preprocessings(preprocessing, both=True).items():
        add(f"declared as {label}", _declared(true, other))
    with tempfile.TemporaryDirectory() as folder:
        for fault, model in broken(Path(true.path)):
            path = Path(folder) / "broken.onnx"
            onnx.save_model(model, str(path))
            config = replace(true, path=str(path))
            # asked one picture at a time, a network does answer for each alone
            alone = "without BatchNorm" in fault and config.build("cpu").batch == 1
            add(f"batch of one: {fault}" if alone else fault, config)
    return rows


def _declared(true: OnnxTeacher, preprocessing: Normalise) -> OnnxTeacher:
    mean, std = (tuple(t.flatten().tolist()) for t in (preprocessing.mean, preprocessing.std))
    return replace(
        true, mean=mean, std=std, scale=preprocessing.scale, channels=preprocessing.channels
    )


def _row(fault: str, verdict: Verdict, seconds: float) -> dict:
    figures = {name: round(value, 4) for name, value in verdict.figures.items()}
    return {
        "fault": fault,
        "passed": not verdict.reasons,
        "figures": figures,
        "reasons": list(verdict.reasons),
        "cpu_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
