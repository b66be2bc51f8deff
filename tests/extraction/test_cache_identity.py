"""How many rows a cache must have is known before a teacher is asked."""

from dataclasses import replace
from pathlib import Path

import pytest

from stillroom.errors import UserError
from stillroom.extraction.cache_identity import pictures_identity
from stillroom.pictures.dataset import PictureShard, open_pictures


def test_with_regions_a_shard_has_a_row_for_each_box_and_without_one_for_each_picture(
    tiny_recipe, monkeypatch
):
    pictures = open_pictures(Path(tiny_recipe.data.shards))
    regions = replace(tiny_recipe, data=replace(tiny_recipe.data, regions=(8, 6)))
    monkeypatch.setattr(PictureShard, "extra", lambda _, i: {"boxes": [[0, 0, 1, 1]] * (i % 3)})
    for recipe, rows in ((tiny_recipe, 8), (regions, 0 + 1 + 2 + 0 + 1 + 2 + 0 + 1)):
        shards = pictures_identity(pictures, recipe)["shards"]
        assert [shard["rows"] for shard in shards] == [rows] * 4
    monkeypatch.setattr(PictureShard, "extra", lambda *_: {})
    with pytest.raises(UserError, match=r"no picture of shard train-000000 .* names a box"):
        pictures_identity(open_pictures(pictures.path), regions)
