"""A run reads pictures and a cache from an S3 server as it reads them from the disk."""

from dataclasses import replace
from pathlib import Path

import pytest

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
