"""A complete small cache that a test may spoil: the one of the tiny world, copied."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.recipe import Recipe


@pytest.fixture
def body(request) -> str:
    """How the rows of `spoilt` are kept; a test of both is parametrized, `indirect=True`."""
    return getattr(request, "param", "zarr")


@pytest.fixture(scope="session")
def caches(make_tiny, tiny_world, tmp_path_factory) -> dict[str, Path]:
    """One cache of the tiny world for each body; nobody writes into them."""
    recipe = make_tiny.tiny_recipe(tiny_world, tmp_path_factory.mktemp("runs"))
    run = replace(recipe.run, cache=str(tmp_path_factory.mktemp("tar")))
    tar = cache_teacher(replace(recipe, body="tar", run=run), ProcessContext())
    (zarr,) = (tiny_world / "cache").iterdir()
    return {"zarr": zarr, "tar": tar.path}


@pytest.fixture
def spoilt(caches, body, tmp_path) -> Path:
    """The folder of a cache of 3 + 1 shards of 8 rows; all is well with it until a test acts."""
    return Path(shutil.copytree(caches[body], tmp_path / "caches" / caches[body].name))


@pytest.fixture
def spoilt_recipe(tiny_recipe, spoilt) -> Recipe:
    """The recipe of that cache."""
    return replace(tiny_recipe, run=replace(tiny_recipe.run, cache=str(spoilt.parent)))


@pytest.fixture
def pictures(tiny_world) -> PictureSet:
    """The pictures of that cache."""
    return open_pictures(tiny_world / "shards")
