"""What each codec costs: bytes a row on disk, its error, and processor time of every step.

`python benchmarks/codecs.py [--source PICTURES... --network N.onnx --tensor NAME --logits L.onnx]`
writes `benchmarks/results/codecs_<size>px_<hardware>_<yyyymm>.json`. Features are those of one
inner tensor (the network is given BGR 0..255), logits those of a network that answers with
probabilities; without them both are random: SiLU of noise, and smooth. Codecs are fitted on other
rows than those measured. A row goes through the real body (zarr, zstd 1); its bytes are those of
its frames. Entropy is order 0, of the symbols that a codec keeps, with one model per channel of
each part, over all measured rows. One thread; milliseconds are medians of processor time a row,
MB/s count two bytes a value.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.entropy import per_channel, symbols_of
from bench.machine import save
from PIL import Image
from torch import Tensor

from stillroom.cache import Cache, claim_cache, make_identity
from stillroom.pictures.loader import image_tensor
from stillroom.teachers.configs import OnnxTeacher
from stillroom.types import Kind, Row, RowStatistics, ShardId, View

SHARD, TARGET = ShardId("train", 0), "target"
FEATURES = ("float16", "int8", *(f"stochastic:{e}" for e in (0.1, 0.3, 1, 3.1, 10, 30)))
LOGITS = ("float16", "int8", "logits8")
ROUNDS = 3  # every step of every row is timed as often


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, nargs="*", default=[], help="folders of pictures")
    parser.add_argument("--network", help="ONNX network with an inner tensor; BGR 0..255")
    parser.add_argument("--tensor", help="the tensor's name")
    parser.add_argument("--logits", help="ONNX network that answers with probabilities")
    parser.add_argument("--size", type=int, default=256, help="height and width of pictures, px")
    parser.add_argument("--rows", type=int, default=16, help="rows measured of each source")
    parser.add_argument("--fit", type=int, default=64, help="other rows that codecs are fitted on")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, kind, values in targets(arguments):
        fit, measured = values[: arguments.fit], values[arguments.fit :]
        texts = FEATURES if kind == "features" else LOGITS
        results[name] = {text: measure(text, kind, fit, measured) for text in texts}
        for text, figures in results[name].items():
            print(name, text, figures, flush=True)
    figures = {"rows": arguments.rows, "fit": arguments.fit, "size": arguments.size}
    command = f"python benchmarks/codecs.py --size {arguments.size} --rows {arguments.rows}"
    for flag in ("source", "network", "tensor", "logits"):
        if getattr(arguments, flag):
            command += f" --{flag} ..."
    save(f"codecs_{arguments.size}px", command, figures | results, arguments.out)


def targets(arguments: argparse.Namespace) -> list[tuple[str, Kind, Tensor]]:
    """Name, kind and values (b c y x) of everything to measure."""
    count, size = arguments.fit + arguments.rows, arguments.size
    found: list[tuple[str, Kind, Tensor]] = []
    for source in arguments.source:
        images = pictures(source, count, size)
        if arguments.network:
            network = OnnxTeacher(
                target=TARGET,
                path=arguments.network,
                tensor=arguments.tensor,
                kind="features",
                channels="BGR",
                scale=255.0,
            )
            found.append((f"features of {source.name}", "features", answers(network, images)))
        if arguments.logits:
            network = OnnxTeacher(target=TARGET, path=arguments.logits, kind="probabilities")
            found.append((f"logits of {source.name}", "logits", answers(network, images)))
    return found or [
        ("random features", "features", random_features(count, size // 8)),
        ("random logits", "logits", random_logits(count, size)),
    ]


def pictures(source: Path, count: int, size: int) -> list[np.ndarray]:
    """Pictures of a folder, evenly spaced over it."""
    files = sorted(path for path in source.rglob("*") if path.suffix in (".jpg", ".png"))
    files = [path for path in files if "Segmentation" not in path.parent.name]
    assert len(files) >= count, f"{count} pictures are asked for, {source} has {len(files)}"
    chosen = [files[i * len(files) // count] for i in range(count)]
    order = np.random.default_rng(0).permutation(count)  # so that fit and measured are alike
    resized = (Image.open(chosen[i]).convert("RGB").resize((size, size)) for i in order)
    return [np.array(image) for image in resized]


def answers(network: OnnxTeacher, images: list[np.ndarray]) -> Tensor:
    built = network.build("cpu")
    batches = [images[start : start + 4] for start in range(0, len(images), 4)]
    said = [built(torch.stack([image_tensor(i) for i in b]), rows=())[TARGET] for b in batches]
    return torch.cat(said)


def random_features(count: int, cells: int) -> Tensor:
    """Most a little below 0, few large, channels of other activity: SiLU of noise."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.3, 3, 128)[:, None, None]
    noise = torch.randn((count, 128, cells, cells), generator=generator)
    return torch.nn.functional.silu(noise * scale - 1)


def random_logits(count: int, size: int) -> Tensor:
    """Smooth, most of them far from 0."""
    generator = torch.Generator().manual_seed(0)
    coarse = 8 * torch.randn((count, 1, size // 32, size // 32), generator=generator)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")


def measure(text: str, kind: Kind, fit: Tensor, measured: Tensor) -> dict[str, float]:
    """Keep the measured rows with one codec; return what it costs."""
    with tempfile.TemporaryDirectory() as folder:
        cache = new_cache(Path(folder), text, kind, measured)
        codec, values = cache.codecs[TARGET], measured[0].numel()
        fitted = codec.fit(fit.split(4)) if codec.needs_fit else {}
        cache.publish_fitted({TARGET: fitted})
        rows = [row_of(i) for i in range(len(measured))]
        busy: dict[str, list[float]] = {"encode": [], "write": [], "read": [], "decode": []}
        decoded, symbols = [], []
        with cache.writer(SHARD) as writer:
            for row, target in zip(rows, measured.split(1), strict=True):
                encode = lambda t=target, r=row: cache.encode(TARGET, t, [r])  # noqa: E731
                parts = timed(busy["encode"], encode)
                kept = {f"{TARGET}.{name}": part[0].numpy() for name, part in parts.items()}
                figures = {TARGET: RowStatistics(0.0, 0.0, 1.0, 1.0 if kind == "logits" else None)}
                began = time.thread_time()
                writer.append(row, kept, figures, 0)
                busy["write"].append(time.thread_time() - began)
                symbols.append(symbols_of(parts, values))
            assert writer.publish({})
        with cache.reader(SHARD) as reader:
            for i in range(len(rows)):
                arrays = timed(busy["read"], lambda i=i: reader.read(i))
                parts = {name: torch.from_numpy(value)[None] for name, value in arrays.items()}
                decode = lambda p=parts: cache.decode(p)[TARGET]  # noqa: E731
                decoded.append(timed(busy["decode"], decode))
            spans = reader.shard_index.spans.values()
            num_bytes = sum(sum(span.size) for span in spans) / len(rows)
    off, centred = torch.cat(decoded) - measured, measured - measured.mean((0, 2, 3), True)
    entropy = sum(per_channel(torch.stack(column)) for column in zip(*symbols, strict=True))
    result = {
        "bytes_row": round(num_bytes),
        "times_smaller_than_2_bytes": round(2 * values / num_bytes, 1),
        "bits_value": round(8 * num_bytes / values, 4),
        "entropy_bits_value": round(entropy / values / len(rows), 4),
        "over_entropy": round(8 * num_bytes * len(rows) / entropy - 1, 3),
        "error_of_energy": float(f"{ratio(off, measured):.3g}"),
        "error_of_variance": float(f"{ratio(off, centred):.3g}"),
    }
    for name, seconds in busy.items():
        median = statistics.median(seconds)
        result[f"{name}_ms"] = round(1e3 * median, 3)
        result[f"{name}_mb_s"] = round(2 * values / 1e6 / max(median, 1e-9))
    return result


def timed(into: list[float], act: Callable[[], Any]) -> Any:
    """Do something a few times; note the processor time of each."""
    result = None
    for _ in range(ROUNDS):
        began = time.thread_time()
        result = act()
        into.append(time.thread_time() - began)
    return result


def row_of(i: int) -> Row:
    return Row(key=f"{i:06d}", view=View(x0=0, y0=0, x1=640, y1=640))


def new_cache(folder: Path, text: str, kind: Kind, measured: Tensor) -> Cache:
    """A cache of one shard of one target."""
    shards = [{"split": "train", "number": 0, "rows": len(measured), "pictures": "0" * 64}]
    shape = tuple(measured.shape[1:])
    target = {"teacher": {}, "shape": shape, "stride": 8, "kind": kind, "codec": text}
    identity = make_identity(
        pictures={"digest": "0" * 64, "shards": shards},
        geometry=(640, 640),
        views={"class": "WholePicture", "count": 1, "regions": False},
        targets={TARGET: target},
        calibration=[],
    )
    return claim_cache(folder, "codecs", identity)


def ratio(off: Tensor, signal: Tensor) -> float:
    return float(off.double().square().sum() / signal.double().square().sum())


if __name__ == "__main__":
    main()
