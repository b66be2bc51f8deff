"""A run reads pictures and a cache from an S3 server as it reads them from the disk."""

from dataclasses import replace
from pathlib import Path

import pytest

from stillroom.jsonfile import file_sha256
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
