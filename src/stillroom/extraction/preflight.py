"""Before the first shard: will what is missing fit on the disk?

Where even the uncompressed rows fit, nothing is run. Otherwise one batch is answered, and as it
compresses, so will the rest, near enough to refuse what hours later would fill the disk. Quotas,
and whoever else writes there, are not seen.
"""

from collections.abc import Callable, Sequence

import numpy as np

from stillroom.cache.folder import Cache
from stillroom.cache.frames import encode_frame
from stillroom.errors import UserError
from stillroom.os_errors import free_bytes
from stillroom.types import ShardId

_SPARE = 1.05  # for rows that compress worse
_PART_BYTES = 850  # of a row of one part: its columns in shard.json, and what a tar puts around it


def require_space(
    cache: Cache, missing: Sequence[ShardId], first_batch: Callable[[], dict[str, np.ndarray]]
) -> None:
    """Raise UserError where the missing shards will not fit.

    `first_batch` gives the encoded parts (b ...) of some of their rows.
    """
    if cache.shards.is_remote:  # shards pass through this disk one by one
        return
    free, num_rows = free_bytes(cache.path), sum(map(cache.shard_rows, missing))
    if num_rows * sum(part.num_bytes for part in cache.parts) <= free:
        return
    columns = first_batch().values()
    frames = [encode_frame(np.ascontiguousarray(row), 1) for column in columns for row in column]
    row_bytes = _PART_BYTES * len(columns) + sum(map(len, frames)) * len(columns) / len(frames)
    if num_rows * row_bytes * _SPARE > free:
        raise UserError(
            f"the cache will not fit on the disk of {cache.path}",
            found=f"{_megabytes(free)} free",
            wanted=f"{_megabytes(num_rows * row_bytes * _SPARE)}: {num_rows} missing rows of"
            f" {_megabytes(row_bytes)} (as the first batch compresses), {_SPARE - 1:.0%} to spare",
            fix="make room, name another place with --run.cache, choose a smaller --codec, or begin"
            " all the same with --run.no-preflight",
        )


def _megabytes(count: int | float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
