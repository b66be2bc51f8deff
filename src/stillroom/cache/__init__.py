"""Where what a teacher said is kept (docs/format.md, section 3)."""

from stillroom.cache.cached_rows import CachedRow
from stillroom.cache.find import find_caches, match_cache
from stillroom.cache.folder import Cache, claim_cache, open_cache
from stillroom.cache.identity import make_identity
from stillroom.cache.reader import ShardReader
from stillroom.cache.scrub import Problem, scrub_shard
from stillroom.cache.writer import ShardWriter

__all__ = [
    "Cache",
    "CachedRow",
    "Problem",
    "ShardReader",
    "ShardWriter",
    "claim_cache",
    "find_caches",
    "make_identity",
    "match_cache",
    "open_cache",
    "scrub_shard",
]
