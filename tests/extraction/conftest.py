"""A complete small cache that a test may spoil: the one of the tiny world, copied."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.recipe import Recipe


@pytest.fixture
def spoilt(tiny_world, tmp_path) -> Path:
    """The folder of a cache of 3 + 1 shards of 8 rows; all is well with it until a test acts."""
    (source,) = (tiny_world / "cache").iterdir()
    return Path(shutil.copytree(source, tmp_path / "caches" / source.name))


@pytest.fixture
def spoilt_recipe(tiny_recipe, spoilt) -> Recipe:
    """The recipe of that cache."""
    return replace(tiny_recipe, run=replace(tiny_recipe.run, cache=str(spoilt.parent)))


@pytest.fixture
def pictures(tiny_world) -> PictureSet:
    """The pictures of that cache."""
    return open_pictures(tiny_world / "shards")
