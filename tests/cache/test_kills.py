"""A process that dies leaves nothing partial, and a rerun finishes as if nothing had been."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stillroom.cache import Cache, claim_cache, local_shards, scrub_shard
from stillroom.cache import writer as module
from stillroom.cache.faults import POINTS
from stillroom.cache.folder import BODIES
from stillroom.errors import DamageError
from stillroom.types import ShardId

TRAIN = ShardId("train", 0)
pytestmark = pytest.mark.timeout(420)  # 100 processes that wait for the disk: 20 s or more


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    driver = Path(__file__).with_name("kill_driver.py")
    work = tmp_path_factory.mktemp("kills")
    done = subprocess.run(
        [sys.executable, driver, work],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


OTHERS = (
    *("row-appended:3", "frame-half-written:9", "folder-made:2", "renamed:3", "parent-synced:2"),
    *("link:1", "link:2", "replace:1", "replace:4"),
)
MAKING = POINTS[POINTS.index("folder-made") : POINTS.index("renamed")]


@pytest.mark.parametrize("case", [*POINTS, *OTHERS])
def test_a_kill_leaves_nothing_partial_and_the_rerun_equals_the_straight_run(
    outcomes, body: str, case: str
):
    found, point = dict(outcomes[f"{body} {case}"]), case.partition(":")[0]
    under_way = found.pop("under_way")
    assert found == {"killed": signal.SIGKILL, "partial": [], "rerun": 0, "equal": True}
    assert under_way == (point in MAKING) or point not in POINTS


def test_every_case_of_the_driver_is_looked_at_and_most_met_a_shard_under_way(outcomes):
    assert len(outcomes) == len(BODIES) * len((*POINTS, *OTHERS)) == 48
    assert sum(found["under_way"] for found in outcomes.values()) >= 24


def test_of_two_writers_of_one_shard_the_first_wins(tmp_path: Path, make):
    cache = claim_cache(tmp_path, "two", make.identity())
    cache.publish_fitted({})
    results = []
    with cache.writer(TRAIN) as first, cache.writer(TRAIN) as second:
        for i in range(5):
            for writer in (first, second):
                said = make.values(cache, TRAIN, i)
                writer.append(make.row(TRAIN, i), said, make.statistics(said), pixels=0)
        results = [second.publish({"who": "second"}), first.publish({"who": "first"})]
    assert results == [True, False]
    assert cache.reader(TRAIN).provenance == {"who": "second"}
    assert not scrub_shard(cache, TRAIN) and not list((cache.path / "tmp").iterdir())


def test_a_reader_sees_a_shard_whole_or_not_at_all(
    tmp_path: Path, make, monkeypatch: pytest.MonkeyPatch
):
    cache = claim_cache(tmp_path, "watched", make.identity())
    cache.publish_fitted({})
    seen = {}

    def look(name: str) -> None:
        seen[name] = cache.is_published(TRAIN) and not scrub_shard(cache, TRAIN)

    monkeypatch.setattr(module, "reach", look)
    monkeypatch.setattr(local_shards, "reach", look)
    assert make.shard(cache, TRAIN)
    assert len(seen) == 9 and [name for name in seen if seen[name]] == ["renamed", "parent-synced"]


def test_bytes_that_the_disk_changes_before_publishing_are_noticed(
    tmp_path: Path, make, monkeypatch: pytest.MonkeyPatch
):
    cache: Cache = claim_cache(tmp_path, "bad-disk", make.identity())
    cache.publish_fitted({})

    def flip(name: str) -> None:
        if name != "folders-synced":
            return
        (path,) = (cache.path / "tmp").glob(f"*/{cache.body.file_of(cache.parts[-1])}")
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 4
        path.write_bytes(data)

    monkeypatch.setattr(module, "reach", flip)
    with pytest.raises(DamageError, match="not read back"):
        make.shard(cache, TRAIN)
    assert cache.missing()[0] == TRAIN and not list((cache.path / "tmp").iterdir())


def test_rows_that_are_not_those_given_are_noticed_before_publishing(
    tmp_path: Path, make, monkeypatch: pytest.MonkeyPatch
):
    """A faulty compressor: the frame and its checksum fit, its content does not."""
    cache = claim_cache(tmp_path, "bad-zstd", make.identity())
    cache.publish_fitted({})
    encode = module.encode_frame

    def faulty(value: np.ndarray, level: int) -> bytes:
        changed = value.copy()
        changed.flat[3] += 1
        return encode(changed, level)

    monkeypatch.setattr(module, "encode_frame", faulty)
    with pytest.raises(DamageError, match="does not hold what was written"):
        make.shard(cache, TRAIN)
    assert not cache.is_published(TRAIN)
