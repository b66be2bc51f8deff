"""Before the first shard: will what is missing fit on the disk?

Where even the uncompressed rows fit, nothing is run. Otherwise the first batch is encoded, and its
compressed rows say what all of them will take. Quotas are not seen, and whoever else writes there
is not either.
"""

from collections.abc import Callable, Sequence

import numpy as np

from stillroom.cache.folder import Cache
from stillroom.cache.frames import encode_frame
from stillroom.errors import UserError
from stillroom.extraction.encode import EncodedBatch
from stillroom.os_errors import free_bytes
from stillroom.types import ShardId

_SHARE = 0.05  # of the estimate, kept for rows that compress worse than the first
_PART_BYTES = 850  # of a row of one part: its columns in shard.json, and what a tar puts around it
_SHARD_BYTES = 1 << 16  # metadata, names and half-filled blocks of one shard


def require_space(
    cache: Cache, missing: Sequence[ShardId], first_batch: Callable[[], EncodedBatch]
) -> str | None:
    """Return a line that says what will be needed, or None where there is room for anything.

    Raises UserError where the missing shards will not fit.
    """
    free, raw_bytes = free_bytes(cache.path), float(sum(part.num_bytes for part in cache.parts))
    if _needed_bytes(cache, missing, raw_bytes) <= free:
        return None
    row_bytes = _row_bytes(first_batch())
    needed = _needed_bytes(cache, missing, row_bytes)
    estimate = (
        f"{_megabytes(needed)}: {sum(map(cache.shard_rows, missing))} missing rows of"
        f" {_megabytes(row_bytes)} (as the first batch compresses), {_SHARE:.0%} and one shard to"
        " spare"
    )
    if needed > free:
        raise UserError(
            f"the cache will not fit on the disk of {cache.path}",
            found=f"{_megabytes(free)} free",
            wanted=estimate,
            fix="make room, name another place with --run.cache, choose a smaller --codec, or begin"
            " all the same with --run.no-preflight",
        )
    return f"disk: {_megabytes(free)} free; needed are {estimate}"


def _needed_bytes(cache: Cache, missing: Sequence[ShardId], row_bytes: float) -> float:
    """Return what the missing shards take; one more, which two processes may make at once."""
    rows = list(map(cache.shard_rows, missing))
    total = (sum(rows) + max(rows)) * (row_bytes + _PART_BYTES * len(cache.parts))
    return total * (1 + _SHARE) + (len(rows) + 1) * _SHARD_BYTES


def _row_bytes(batch: EncodedBatch) -> float:
    """Return the mean bytes of a row, compressed as a writer does it."""
    rows = (np.ascontiguousarray(row) for part in batch.parts.values() for row in part)
    return sum(len(encode_frame(row, 1)) for row in rows) / len(batch.rows)


def _megabytes(count: int | float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
