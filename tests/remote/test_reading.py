"""A run reads pictures and a cache from an S3 server as it reads them from the disk."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillroom.cache import find_caches
from stillroom.checking.run_check import CheckOptions, run_check
from stillroom.commands.evaluate import parse
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.jsonfile import file_sha256
from stillroom.remote.store import Store
from stillroom.training.loop import train


def remote(recipe, s3, local: Path, **more):
    data = replace(recipe.data, shards=f"{s3.url}/shards")
    run = replace(recipe.run, cache=f"{s3.url}/cache", local=str(local), **more)
    return replace(recipe, data=data, run=run)


@pytest.mark.parametrize("window", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_run_from_a_store_is_that_from_the_disk(
    tiny_world, tiny_recipe, s3, upload, tmp_path, window
):
    upload(tiny_world / "shards", f"{s3.url}/shards")
    upload(tiny_world / "cache", f"{s3.url}/cache")
    recipe = replace(tiny_recipe, data=replace(tiny_recipe.data, window=window))
    train(replace(recipe, run=replace(recipe.run, name="near")))
    train(remote(recipe, s3, tmp_path / "local", name="far"))
    digests = {
        file_sha256(tmp_path / "runs" / name / "student.safetensors") for name in ("near", "far")
    }
    assert len(digests) == 1
    local = ["--run.local", str(tmp_path / "local")]
    parse([str(tmp_path / "runs" / "far"), "--cache", f"{s3.url}/cache", *local])
    assert not (tmp_path / "user-cache" / "stillroom").exists(), "where copies are kept by default"


@pytest.mark.slow
def test_both_stages_work_in_a_store_and_a_flipped_shard_is_made_again(
    tiny_recipe, tiny_world, s3, upload, tmp_path
):
    upload(tiny_world / "shards", f"{s3.url}/shards")
    recipe = remote(tiny_recipe, s3, tmp_path / "local", name="far")
    cache = cache_teacher(recipe, ProcessContext())
    assert cache.is_complete
    there = Store(f"{s3.url}/cache/{cache.path.name}")
    (upload_name,) = (name for name in there.names()[1] if name.startswith("train-000001."))
    file = next(name for name in there.below(upload_name) if name.endswith("/c/0/0/0/0"))
    data = bytearray(there.get(file) or b"")
    data[40] ^= 4
    there.put(file, bytes(data))
    place = recipe.run.place(recipe.run.cache)
    found = run_check(place, recipe, None, CheckOptions())
    assert {str(problem.shard) for problem in found.problems} == {"train-000001"}
    assert run_check(place, recipe, None, CheckOptions(repair=True)).is_well
    train(recipe)
    train(replace(tiny_recipe, run=replace(tiny_recipe.run, name="near")))
    digests = {
        file_sha256(tmp_path / "runs" / name / "student.safetensors") for name in ("near", "far")
    }
    assert len(digests) == 1
    parse([str(tmp_path / "runs" / "far"), "--cache", f"{s3.url}/cache"])
    assert (tmp_path / "runs" / "far" / "evaluation.json").is_file()


def make_all(recipe) -> None:
    assert cache_teacher(recipe, ProcessContext()).is_complete


@pytest.mark.slow
def test_two_stage_1_processes_that_race_for_every_shard_make_one_cache(
    tiny_recipe, tiny_world, s3, upload, tmp_path
):
    upload(tiny_world / "shards", f"{s3.url}/shards")
    recipes = [remote(tiny_recipe, s3, tmp_path / name) for name in ("one", "two")]
    context = multiprocessing.get_context("spawn")
    racers = [context.Process(target=make_all, args=(recipe,)) for recipe in recipes]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(100)
    assert [racer.exitcode for racer in racers] == [0, 0]
    (cache,) = find_caches(recipes[0].run.place(recipes[0].run.cache))
    (near,) = find_caches(tiny_world / "cache")
    for shard in cache.shard_ids():
        far_rows, near_rows = cache.reader(shard), near.reader(shard)
        assert all(
            np.array_equal(value, near_rows.read(i)[name])
            for i in range(len(far_rows))
            for name, value in far_rows.read(i).items()
        )
    cache.shards.remove_garbage()
    uploads = [
        n for n in Store(f"{s3.url}/cache/{cache.path.name}").names()[1] if n != "quarantine"
    ]
    assert len(uploads) == len(cache.shard_ids())
