"""Views go through both stages: what is stored is what a teacher says of the replayed picture."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.cache import Cache, find_caches
from stillroom.errors import UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.jsonfile import read_json, write_json
from stillroom.losses import CrossEntropy
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.pictures.loader import image_tensor
from stillroom.pictures.views import Views
from stillroom.recipe import Augment, Recipe
from stillroom.training.loop import train
from stillroom.training.stream import RowDataset
from stillroom.types import View

SIZE, VIEWS = (16, 24), Views(count=3, scale=(0.4, 2.0), seed=4)


@pytest.fixture
def recipe(tiny_recipe, tmp_path) -> Recipe:
    return replace(
        tiny_recipe,
        data=replace(tiny_recipe.data, size=SIZE),
        views=VIEWS,
        run=replace(tiny_recipe.run, cache=str(tmp_path / "cache")),
        augment=Augment(),
    )


@pytest.fixture
def cache(recipe) -> Cache:
    return cache_teacher(recipe, ProcessContext())


def by_hand(image: np.ndarray, view: View) -> np.ndarray:
    """A view, one pixel at a time and in floating point: triangles over the box, grey outside."""
    height, width = image.shape[:2]
    box = np.full((view.y1 - view.y0, view.x1 - view.x0, 3), 128.0)
    for y in range(max(view.y0, 0), min(view.y1, height)):
        for x in range(max(view.x0, 0), min(view.x1, width)):
            box[y - view.y0, x - view.x0] = image[y, x]
    for axis, length in enumerate(SIZE):
        step = box.shape[axis] / length
        reach, centres = max(step, 1.0), (np.arange(length) + 0.5) * step
        distances = np.abs(np.arange(box.shape[axis]) + 0.5 - centres[:, None]) / reach
        weights = np.maximum(0, 1 - distances)
        box = np.moveaxis(
            np.tensordot(weights / weights.sum(1, keepdims=True), box, (1, axis)), 0, axis
        )
    return box[:, ::-1] if view.mirrored else box


def datasets(recipe: Recipe, cache: Cache | None) -> tuple[PictureSet, RowDataset]:
    pictures = open_pictures(Path(recipe.data.shards))
    targets = () if cache is None else ("shapes", "inner")
    return pictures, RowDataset(
        pictures, "train", cache=cache, targets=targets, size=SIZE, views=recipe.views
    )


def test_every_stored_row_is_what_the_teacher_says_of_the_replayed_picture(recipe, cache):
    assert [cache.shard_rows(id_) for id_ in cache.shard_ids()] == [24, 24, 24, 8]
    assert cache.geometry == SIZE
    assert cache.specs["shapes"].shape == (4, 16, 24) and cache.specs["inner"].shape == (16, 4, 6)
    assert (cache.specs["shapes"].stride, cache.specs["inner"].stride) == (1, 4)
    pictures, dataset = datasets(recipe, cache)
    teacher, num_mirrored = recipe.teachers[0].build("cpu"), 0
    for place in range(len(dataset)):
        shard, first = dataset.places[place]
        packed = pictures.open(shard).read(pictures.open(shard).index(first.key)).image
        found = {}
        for number in range(3):
            _, arrays = dataset.read(place, number)
            said = teacher(image_tensor(arrays["image"])[None])
            for name in ("shapes", "inner"):
                stored = torch.from_numpy(arrays[f"{name}.value"]).float()
                torch.testing.assert_close(stored, said[name][0], rtol=2e-3, atol=2e-3)
            found[arrays["image"].tobytes()] = arrays["image"]
        rows = cache.rows(first.key)
        assert [row.view.number for row in rows] == [0, 1, 2]
        num_mirrored += sum(row.view.mirrored for row in rows)
        wanted = [by_hand(packed, row.view) for row in rows]
        for image in found.values():  # each view once, as it is stored
            off = [np.abs(image - other).max() for other in wanted]
            assert min(off) <= 1.5, off  # two roundings to whole levels
            wanted.pop(int(np.argmin(off)))
        assert not wanted
    assert 10 < num_mirrored < 38  # of 48 drawn


def test_passes_rotate_and_begin_anywhere(recipe, cache):
    _, dataset = datasets(recipe, cache)
    firsts = set()
    for place in range(len(dataset)):
        key = dataset.places[place][1].key
        whole = dataset.read(place, 0)[1]["shapes.value"].tobytes()
        passes = [dataset.read(place, n)[1]["shapes.value"].tobytes() for n in range(6)]
        assert passes[:3] == passes[3:] and len(set(passes)) == 3
        firsts.add(
            [row.targets["shapes"].half().numpy().tobytes() for row in cache.rows(key)].index(whole)
        )
    assert firsts == {0, 1, 2}


def test_a_plain_run_sees_the_stored_views_first_and_then_new_ones_of_the_same_kind(recipe, cache):
    (_, stored), (_, plain) = datasets(recipe, cache), datasets(recipe, None)
    for place in range(0, len(stored), 5):
        kept = [stored.read(place, n)[1]["image"].tobytes() for n in range(3)]
        found = [plain.read(place, n)[1]["image"].tobytes() for n in range(30)]
        whole = [n for n, image in enumerate(found) if found.count(image) > 1]
        assert len(whole) == 10 and {n % 3 for n in whole} == {whole[0]}  # view 0, as often
        assert len(set(found)) == 21
        assert found[whole[0]] in kept
        # Until its first pass over all views is through, it sees what the other sees.
        for n in range(whole[0] or 3):
            assert found[n] == kept[n]


def test_validation_is_the_whole_picture_in_every_pass(recipe, cache):
    pictures = open_pictures(Path(recipe.data.shards))
    for kept in (cache, None):
        targets = () if kept is None else ("shapes",)
        dataset = RowDataset(
            pictures, "val", cache=kept, targets=targets, size=SIZE, views=recipe.views
        )
        packed = pictures.open(dataset.places[2][0]).read(2).image
        for number in range(4):
            whole = Image.fromarray(packed).resize(SIZE[::-1], Image.Resampling.BILINEAR)
            assert np.array_equal(dataset.read(2, number)[1]["image"], np.array(whole))


def test_a_student_is_trained_at_that_size_with_and_without_what_a_teacher_said(recipe, cache):
    folder = train(recipe)
    assert read_json(folder / "student.json")["geometry"] == {
        "height": 16,
        "width": 24,
        "fit": "letterbox",
    }
    assert read_json(folder / "receipt.json")["cache"]["fingerprint"] == cache.fingerprint
    plain = replace(recipe, name="plain", terms=(CrossEntropy(weight=1.0),))
    assert math.isfinite(read_json(train(plain) / "student.json")["score"]["miou"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data.size": None}, "height and width = [32, 48]"),
        ({"data.size": (8, 24)}, "height and width = [8, 24]"),
        ({"views.count": 2}, "views.count = 2"),
        ({"views.seed": 5}, "views.seed = 5"),
        ({"views.mirror": 0.25}, "views.mirror = 0.25"),
    ],
)
def test_a_cache_of_another_size_or_other_views_is_refused_with_both_sides(
    recipe, cache, changes, named
):
    for name, value in changes.items():
        part, _, field = name.partition(".")
        recipe = replace(recipe, **{part: replace(getattr(recipe, part), **{field: value})})
    with pytest.raises(UserError, match="none of the 1 caches") as refused:
        train(recipe)
    assert named in refused.value.wanted and named.split(" = ")[0] in refused.value.found


@pytest.mark.parametrize("row", [0, 7])
def test_a_row_of_other_pixels_stops_the_training_and_names_both_versions(recipe, cache, row):
    path = next(cache.path.glob("train-000001.*")) / "shard.json"
    body = read_json(path)
    body["rows"]["pixels"][row] ^= 1 << 31
    body["provenance"]["versions"]["pillow"] = "9.1.0"
    write_json(path, body)
    with pytest.raises(UserError, match=rf"{body['rows']['key'][row]} .*are not those") as refused:
        train(replace(recipe, on_damage="substitute", epochs=3))
    assert (
        "pillow 9.1.0" in refused.value.wanted
        and f"pillow {Image.__version__}" in refused.value.found
    )


def test_another_resampling_is_noticed(recipe, cache, monkeypatch):
    """What another Pillow would do: the same picture, some pixels off by a level."""
    resize = Image.Image.resize

    def other(self, size, *rest):
        found = np.array(resize(self, size, *rest))
        return Image.fromarray(found + (np.arange(found.size).reshape(found.shape) == 100))

    _, dataset = datasets(recipe, cache)
    dataset.read(3, 1)
    monkeypatch.setattr(Image.Image, "resize", other)
    with pytest.raises(UserError, match="are not those that the teachers saw"):
        dataset.read(3, 1)
    assert find_caches(cache.path)[0].is_complete
