"""Codecs are fitted once, on rows that everybody would choose, before the first row is kept."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from stillroom.cache.folder import Cache
from stillroom.errors import UserError
from stillroom.hashing import keyed_hash
from stillroom.pictures.dataset import PictureSet
from stillroom.recipe import Recipe
from stillroom.types import Row, ShardId

NUM_ROWS = 64  # of the training split, or all of a smaller one


def calibration_keys(pictures: PictureSet) -> tuple[str, ...]:
    """Return the keys that codecs are fitted on: spread over the training shards, drawn by hash.

    Opens at most `NUM_ROWS` shards.
    """
    shards = pictures.shard_ids("train") or pictures.shard_ids()
    step = max(1, len(shards) // NUM_ROWS)
    chosen = shards[::step][:NUM_ROWS]
    each = -(-NUM_ROWS // len(chosen))
    draw = partial(keyed_hash, "calibration")
    keys = [key for id_ in chosen for key in sorted(pictures.open(id_).keys, key=draw)[:each]]
    return tuple(sorted(sorted(keys, key=draw)[:NUM_ROWS]))


def fit_codecs(
    cache: Cache,
    recipe: Recipe,
    pictures: PictureSet,
    run: Callable[[list[tuple[ShardId, Row]]], Iterator[tuple[Any, dict[str, Tensor]]]],
) -> None:
    """Publish the fitted values of a cache's codecs, unless they are there.

    `run` runs the teachers on rows and yields rows and targets batch by batch; it is called once
    per codec that needs it. Errors as `restore_fitted`.
    """
    restore_fitted(cache)
    if cache.is_fitted:
        return
    needed = [name for name, codec in cache.codecs.items() if codec.needs_fit]
    rows = _rows(cache, recipe, pictures)
    cache.publish_fitted(
        {name: cache.codecs[name].fit(targets[name] for _, targets in run(rows)) for name in needed}
    )


def restore_fitted(cache: Cache) -> None:
    """Write the file of fitted values again where it is gone and no codec needs any.

    Raises UserError where shards stand that were made with values that are gone: fitted again they
    would not be the same.
    """
    if cache.is_fitted:
        return
    if not any(codec.needs_fit for codec in cache.codecs.values()):
        cache.publish_fitted({})
    elif len(cache.missing()) < len(cache.shard_ids()):
        raise UserError(
            f"{cache.path} has shards but not the fitted values that they were made with",
            found="no codecs.safetensors",
            wanted="the file whose sha256 every shard.json names",
            fix="put it back, or move the folder away and make the cache again",
        )


def _rows(cache: Cache, recipe: Recipe, pictures: PictureSet) -> list[tuple[ShardId, Row]]:
    """Return the first row of each calibration key."""
    wanted = set(cache.identity["calibration"])
    found: dict[str, tuple[ShardId, Row]] = {}
    for shard in pictures.shard_ids():
        if len(found) == len(wanted):
            break
        if wanted.isdisjoint(pictures.open(shard).keys):
            continue
        for row in recipe.rows_of(pictures.open(shard)):
            if row.key in wanted:
                found.setdefault(row.key, (shard, row))
    return list(found.values())
