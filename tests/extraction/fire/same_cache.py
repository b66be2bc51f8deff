"""Whether a cache that was made under difficulties is the one that was made without."""

import numpy as np

from stillroom.cache import Cache, scrub_shard


def differences(whole: Cache, other: Cache, *, quarantined: int = 0) -> list[str]:
    """Return everything in which a cache is not the uninterrupted one, or not finished.

    Rows, statistics and the bytes of every body file must be equal; `shard.json` may differ in its
    provenance. `quarantined` shards were damaged on purpose.
    """
    problems = [f"missing: {shard}" for shard in other.missing()]
    if problems:
        return problems
    problems += [] if other.is_complete else ["no manifest"]
    problems += [] if other.fingerprint == whole.fingerprint else ["another fingerprint"]
    aside = list((other.path / "quarantine").glob("*/shard.json"))
    problems += [f"quarantined: {path}" for path in aside[quarantined:]]
    for shard in whole.shard_ids():
        problems += map(str, scrub_shard(other, shard))
        with whole.reader(shard) as a, other.reader(shard) as b:
            one, two = a.shard_index, b.shard_index
            if one.columns != two.columns or one.statistics != two.statistics:
                problems.append(f"{shard}: other rows or statistics")
            if one.files != two.files:
                problems.append(f"{shard}: other bytes in {sorted(one.files)}")
            for i in range(len(a)):
                read = a.read(i), b.read(i)
                if not all(np.array_equal(read[0][part], read[1][part]) for part in read[0]):
                    problems.append(f"{shard}: row {i} differs")
    return problems
