"""A store that goes away in mid-upload or mid-read, and comes back with all that it had."""

import time
from dataclasses import replace

import pytest

from stillroom.cache import find_caches
from stillroom.errors import FailureError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.pictures.dataset import open_pictures
from stillroom.remote import store
from stillroom.remote.mirror import place_of
from stillroom.remote.store import Store

HALF = 3000  # bytes: in the middle of a shard of the tiny cache


@pytest.fixture
def recipe(tiny_recipe, s3, tmp_path):
    """The tiny system, its cache in the bucket."""
    run = replace(tiny_recipe.run, cache=f"{s3.url}/cache", local=str(tmp_path / "local"))
    return replace(tiny_recipe, run=run)


@pytest.fixture
def cut_in_the_second_shard(line, monkeypatch):
    """Cuts the line in the middle of the shard after the first that is published."""

    def arm(away_s: float | None) -> None:
        put = Store.put

        def putting(there: Store, name: str, data, **more) -> bool:
            won = put(there, name, data, **more)
            if name.startswith("train-") and "/" not in name and not line.cuts:
                line.cut("up", HALF, away_s)
            return won

        monkeypatch.setattr(Store, "put", putting)

    return arm


def same_rows(cache, world) -> bool:
    (near,) = find_caches(world / "cache")
    return all(
        (far.targets[name] == one.targets[name]).all()
        for far, one in zip(cache, near, strict=True)
        for name in one.targets
    )


def test_stage_1_goes_on_by_itself_where_a_store_goes_away_in_mid_upload(
    recipe, line, cut_in_the_second_shard, tiny_world
):
    cut_in_the_second_shard(1.5)
    cache = cache_teacher(recipe, ProcessContext())
    assert line.cuts == 1 and cache.is_complete and same_rows(cache, tiny_world)
    assert cache.shards.garbage() == []


def test_where_it_stays_away_that_is_told_and_a_second_run_finishes_the_cache(
    recipe, line, cut_in_the_second_shard, tiny_world, monkeypatch
):
    monkeypatch.setattr(store, "PATIENCE_S", 1.0)
    cut_in_the_second_shard(None)
    began = time.monotonic()
    with pytest.raises(FailureError) as told:
        cache_teacher(recipe, ProcessContext())
    assert line.cuts == 1 and time.monotonic() - began < 20
    assert f"{recipe.run.cache}/tiny-" in str(told.value) and "nothing is lost" in str(told.value)
    assert len(str(told.value).splitlines()) == 3, "what, found and fix"
    line.come_back()
    (cache,) = find_caches(recipe.run.place(recipe.run.cache))
    there = Store(f"{recipe.run.cache}/{cache.path.name}")
    kept = {name: there.get(name) for name in there.names()[0] if name.startswith("train-")}
    assert 1 <= len(kept) < len(cache.shard_ids())
    cache = cache_teacher(recipe, ProcessContext())
    assert cache.is_complete and same_rows(cache, tiny_world)
    assert {name: there.get(name) for name in kept} == kept, "made once"


def test_reading_goes_on_where_a_store_goes_away_in_mid_read(line, s3, pictures, upload, tmp_path):
    upload(pictures.path, f"{s3.url}/shards")
    read = open_pictures(place_of(f"{s3.url}/shards", str(tmp_path)))
    first = read.open(read.shards[0].id).read(0)
    line.cut("down", read.shards[1].size // 2, 1.5)
    found = [read.open(info.id).read(0).image[0, 0, 0] for info in read.shards]
    assert line.cuts == 1 and found == [3 * i for i in range(8)] and first.image[0, 0, 0] == 0
