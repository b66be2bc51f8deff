"""Rows of pictures through the teachers and codecs: what a writer appends."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.cache.folder import Cache
from stillroom.cache.writer import require_finite
from stillroom.errors import UserError
from stillroom.pictures.dataset import Picture, PictureSet
from stillroom.pictures.loader import box_tensor, image_tensor, read_ahead
from stillroom.pictures.pixels import pixels_crc32c
from stillroom.pictures.rows import picture_of
from stillroom.teachers.protocol import BuiltTeacher
from stillroom.types import Kind, Row, RowStatistics, ShardId

RowPicture = tuple[Row, Picture]
# Of what is promised, of a whole shard. YOLOX's stride-8 features, shards of 8 to 64 rows: .95 to
# 1.02, single rows .71 to 1.41. A stand-in at half the amplitude of the calibration rows: 1.9 to
# 2.8, at three times .22 to .34, since the promise is a relative error.
WORSE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """What is kept of some rows: the crc32c of their pixels, parts `<target>.<part>` (b ...), and
    statistics per target; and what is promised of the mean squared error of each row.
    """

    rows: tuple[Row, ...]
    pixels: tuple[int, ...]
    parts: dict[str, np.ndarray]
    statistics: dict[str, list[RowStatistics]]
    promised: dict[str, list[float]]  # of targets whose codecs promise something of a whole shard

    def each(self) -> Iterator[tuple[Row, dict[str, np.ndarray], dict[str, RowStatistics], int]]:
        """Yield row by row what `ShardWriter.append` takes."""
        for i, row in enumerate(self.rows):
            parts = {name: part[i] for name, part in self.parts.items()}
            statistics = {name: column[i] for name, column in self.statistics.items()}
            yield row, parts, statistics, self.pixels[i]


def read_batches(
    pictures: PictureSet,
    rows: Iterable[tuple[ShardId, Row]],
    size: tuple[int, int],
    num_rows: int,
    workers: int,
) -> Generator[list[RowPicture], None, None]:
    """Yield rows with their pictures of `size` (h, w) in order, `num_rows` at a time, decoded ahead
    in threads.

    Raises DamageError for a picture that cannot be read.
    """

    def read(place: tuple[ShardId, Row]) -> RowPicture:
        shard, row = pictures.open(place[0]), place[1]
        return row, picture_of(shard.read(shard.index(row.key), labels=False), row, size)

    batch: list[RowPicture] = []
    with closing(read_ahead(rows, read, workers, depth=2 * num_rows)) as found:
        for pair in found:
            batch.append(pair)
            if len(batch) == num_rows:
                yield batch
                batch = []
    if batch:
        yield batch


def run_teachers(
    teachers: Sequence[BuiltTeacher], batch: Sequence[RowPicture], device: str
) -> dict[str, Float[Tensor, "b c y x"]]:
    """Run every teacher on one batch; return what each target is, on the device, fp32."""
    image = torch.stack([image_tensor(picture.image) for _, picture in batch]).to(device)
    rows = tuple(row for row, _ in batch)
    boxes = box_tensor([picture for _, picture in batch])
    outputs: dict[str, Tensor] = {}
    for built in teachers:
        outputs |= built(image, rows=rows, boxes=boxes)
    return outputs


def encode(
    cache: Cache, batch: Sequence[RowPicture], outputs: dict[str, Float[Tensor, "b c y x"]]
) -> EncodedBatch:
    """Return what the cache's codecs keep of some rows' targets; UserError for what they cannot.

    What was encoded is decoded and compared: a value that is further off than its codec promises is
    refused, too.
    """
    rows = tuple(row for row, _ in batch)
    pixels = tuple(pixels_crc32c(picture) for _, picture in batch)
    parts: dict[str, np.ndarray] = {}
    statistics: dict[str, list[RowStatistics]] = {}
    promised: dict[str, list[float]] = {}
    for name, target in outputs.items():
        before = _statistics(target, cache.specs[name].kind)
        for row, figures in zip(rows, before, strict=True):
            require_finite(row, name, figures)
        kept = cache.encode(name, target, rows)
        kept = {f"{name}.{part}": tensor for part, tensor in kept.items()}
        errors = _errors(cache, name, target, kept, rows)
        statistics[name] = [f._replace(error=e) for f, e in zip(before, errors, strict=True)]
        if (allowed := cache.promised_error(name, target)) is not None:
            promised[name] = allowed.tolist()
        parts |= {part: tensor.cpu().numpy() for part, tensor in kept.items()}
    return EncodedBatch(
        rows=rows, pixels=pixels, parts=parts, statistics=statistics, promised=promised
    )


class ShardError:
    """The errors of a shard's rows and what is promised of them, summed per target."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, batch: EncodedBatch) -> None:
        """Add some rows."""
        for name, promised in batch.promised.items():
            found, wanted = self._sums.get(name, (0.0, 0.0))
            found += sum(figures.error for figures in batch.statistics[name])
            self._sums[name] = found, wanted + sum(promised)

    def require(self, cache: Cache, shard: ShardId) -> None:
        """Raise UserError where the shard is worse than the codec of a target promises."""
        for name, (found, wanted) in self._sums.items():
            if found > WORSE * wanted:
                ratio = f"{found / wanted:.2g} times" if wanted else "more than"
                raise UserError(
                    f"the codec {cache.codecs[name].text} did not keep {name} of shard {shard} as"
                    " promised: its rows are unlike those that it was fitted on",
                    found=f"{ratio} the promised error",
                    wanted=f"at most {WORSE} times",
                    fix=f"a codec that is not fitted, in a new cache: --codec.{name} int8",
                )


def _errors(
    cache: Cache,
    name: str,
    target: Float[Tensor, "b c y x"],
    kept: dict[str, Tensor],
    rows: Sequence[Row],
) -> list[float]:
    """Return each row's mean squared error; raises UserError where one value is too far off."""
    off = cache.decode(kept, target.device)[name] - target
    excess = (off.abs() - cache.error_bound(name, target)).flatten(1).amax(1)
    squared = off.flatten(1).square().mean(1, dtype=torch.float64).tolist()
    for row, beyond in zip(rows, excess.tolist(), strict=True):
        if not beyond <= 0:  # NaN compares false
            raise UserError(
                f"the codec {cache.codecs[name].text} did not keep {name} of {row.key} as promised",
                found=f"a value that is {beyond:.3g} further off",
                wanted="no value further off than the codec's error_bound",
                fix=f"another codec for this target: --codec.{name} float16",
            )
    return squared


def _statistics(target: Float[Tensor, "b c y x"], kind: Kind) -> list[RowStatistics]:
    """Return the statistics of each row; one softmax is the largest copy."""
    flat = target.flatten(1)
    ends = torch.stack([flat.amin(1), flat.amax(1)]).tolist()  # aminmax takes 20 times as long
    finite = [
        1.0 if isfinite(low) and isfinite(high) else _finite_share(row)
        for row, low, high in zip(flat, *ends, strict=True)
    ]
    sure = _confidence(target.float()).tolist() if kind == "logits" else [None] * len(finite)
    return list(map(RowStatistics, *ends, finite, sure))


def _finite_share(values: Float[Tensor, "n"]) -> float:
    return torch.isfinite(values).double().mean().item()


def _confidence(logits: Float[Tensor, "b k y x"]) -> Float[Tensor, "b"]:
    """Return each row's mean over the cells of the likeliest class's probability."""
    several = logits.shape[1] > 1
    likeliest = logits.softmax(1).amax(1) if several else logits.abs().sigmoid()
    return likeliest.flatten(1).mean(1).clamp(max=1)  # rounding may pass 1 by 1e-7
