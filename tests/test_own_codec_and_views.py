"""A codec and a source of views that the package has never seen go through both stages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stillroom.cache import Cache, open_cache
from stillroom.codecs import CODECS, Codec
from stillroom.errors import DamageError, UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.jsonfile import read_json
from stillroom.pictures.dataset import open_pictures
from stillroom.pictures.loader import image_tensor
from stillroom.pictures.views import PixelBox
from stillroom.recipe import Recipe
from stillroom.training.loop import train
from stillroom.training.stream import RowDataset
from stillroom.types import Row, ShardId, View

ALONE = ProcessContext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dithered:
    """One fitted step for all; rounded up or down by a number drawn for the row and the value."""

    needs_fit: ClassVar[bool] = True
    is_noisy: ClassVar[bool] = True
    text: ClassVar[str] = "dithered"

    @classmethod
    def parse(cls, argument: str) -> "Dithered":
        assert not argument
        return cls()

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"symbol": ("int16", shape)}

    def fit(self, values: Iterable[Tensor]) -> dict[str, Tensor]:
        return {"step": torch.cat([v.flatten() for v in values]).std() / 8}

    def encode(
        self, target: Float[Tensor, "b ..."], rows: Sequence[Row], fitted: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        seeds = [torch.Generator().manual_seed(row.hash("dither") >> 1) for row in rows]
        noise = torch.stack([torch.rand(target.shape[1:], generator=seed) for seed in seeds])
        return {"symbol": torch.floor(target / fitted["step"] + noise).to(torch.int16)}

    def decode(self, parts: dict[str, Tensor], fitted: dict[str, Tensor]) -> Float[Tensor, "b ..."]:
        return parts["symbol"].float() * fitted["step"]

    def error_bound(
        self, target: Float[Tensor, "b ..."], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b ..."]:
        return fitted["step"].expand(target.shape)

    def promised_error(
        self, target: Float[Tensor, "b ..."], fitted: dict[str, Tensor]
    ) -> Float[Tensor, "b"] | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """The whole picture, and its left half mirrored."""

    count: int = 2

    def view(self, key: str, number: int, size: tuple[int, int], shown: PixelBox) -> View:
        (height, width), half = size, number % 2 == 1
        right = width // 2 if half else width
        return View(number=number, x0=0, y0=0, x1=right, y1=height, mirrored=half)


def rows(cache: Cache) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    found = {}
    for shard in cache.shard_ids():
        with cache.reader(shard) as reader:
            for i, row in enumerate(reader.rows):
                found[row.key, row.view.number] = reader.read(i)
    return found


@pytest.fixture
def recipe(tiny_recipe, tmp_path, monkeypatch) -> Recipe:
    monkeypatch.setitem(CODECS, "dithered", Dithered)
    run = replace(tiny_recipe.run, cache=str(tmp_path / "cache"))
    return replace(tiny_recipe, run=run, epochs=1, codec={"inner": "dithered"})


def test_a_codec_is_fitted_once_on_named_rows_and_every_shard_repeats_what_was_fitted(recipe):
    assert isinstance(Dithered(), Codec)
    cache = cache_teacher(recipe, ALONE)
    keys = cache.identity["calibration"]
    pictures = open_pictures(recipe.data.shards)
    trained = [key for id_ in pictures.shard_ids("train") for key in pictures.open(id_).keys]
    assert keys == sorted(trained)  # 24 pictures are fewer than are asked for
    assert list(cache.fitted["inner"]) == ["step"] and cache.fitted["shapes"] == {}
    before = (cache.path / "codecs.safetensors").read_bytes()
    found = {read_json(path)["codecs_sha256"] for path in cache.path.glob("*.zarr/shard.json")}
    assert found == {cache.codecs_sha256}
    cache.quarantine(ShardId("train", 1), "a test")
    cache_teacher(recipe, ALONE)
    assert (cache.path / "codecs.safetensors").read_bytes() == before


def test_what_is_drawn_for_a_row_knows_no_batch_and_no_rank(recipe, tmp_path):
    one = cache_teacher(recipe, ALONE)
    run = replace(recipe.run, cache=str(tmp_path / "other"))
    other = replace(recipe, run=run, batch=3, micro_batch=3)
    (tmp_path / "other" / one.path.name).mkdir(parents=True)
    two = cache_teacher(other, ProcessContext(rank=1, world=2))
    assert two.fingerprint == one.fingerprint
    step = one.fitted["inner"]["step"]
    torch.testing.assert_close(two.fitted["inner"]["step"], step)
    for key, parts in rows(one).items():
        difference = parts["inner.symbol"] - rows(two)[key]["inner.symbol"]
        assert (difference != 0).mean() < 1e-2  # where a value lies on the edge of a step


def test_fitted_values_that_are_gone_are_not_fitted_again_while_a_shard_stands(recipe):
    cache = cache_teacher(recipe, ALONE)
    (cache.path / "codecs.safetensors").unlink()
    cache.quarantine(ShardId("train", 1), "a test")
    with pytest.raises(UserError, match="not the fitted values"):
        cache_teacher(recipe, ALONE)
    assert not open_cache(cache.path).is_fitted


@pytest.mark.parametrize("byte", [4, -1])
def test_damaged_fitted_values_are_not_blamed_on_the_shards(recipe, byte):
    cache = cache_teacher(recipe, ALONE)
    path = cache.path / "codecs.safetensors"
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match=r"codecs\.safetensors"):
        cache_teacher(recipe, ALONE)
    assert open_cache(cache.path).missing() == ()
    assert not list((cache.path / "quarantine").iterdir())


def test_the_student_reads_what_the_codec_decodes(recipe):
    cache = cache_teacher(recipe, ALONE)
    teacher = recipe.teachers[0].build("cpu")
    pictures = open_pictures(recipe.data.shards)
    shard = pictures.open(ShardId("train", 0))
    outputs = teacher(image_tensor(shard.read(0).image)[None])["inner"][0]
    error = (cache[0].targets["inner"] - outputs).abs()
    assert 0 < error.max() <= cache.fitted["inner"]["step"] * 1.001
    assert (train(recipe) / "student.safetensors").is_file()


@pytest.fixture
def two_views(recipe) -> Recipe:
    return replace(recipe, codec={}, views=Halves())


def test_both_views_are_kept_of_training_and_the_first_of_validation(two_views):
    cache = cache_teacher(two_views, ALONE)
    assert [cache.shard_rows(id_) for id_ in cache.shard_ids()] == [16, 16, 16, 8]
    assert cache.identity["views"] == {"class": "Halves", "count": 2, "regions": False}
    found = cache.rows(cache[0].key)
    assert [row.view.number for row in found] == [0, 1]
    teacher = two_views.teachers[0].build("cpu")
    picture = open_pictures(two_views.data.shards).open(ShardId("train", 0)).read(0).image
    half = Image.fromarray(picture[:, :24]).resize((48, 32), Image.Resampling.BILINEAR)
    half = np.array(half)
    for row, image in zip(found, (picture, half[:, ::-1].copy()), strict=True):
        outputs = teacher(image_tensor(image)[None])["shapes"][0]
        torch.testing.assert_close(row.targets["shapes"], outputs, atol=2e-3, rtol=2e-3)


def test_each_pass_shows_another_view_with_the_targets_of_that_view(two_views):
    cache = cache_teacher(two_views, ALONE)
    pictures = open_pictures(Path(two_views.data.shards))
    dataset = RowDataset(pictures, "train", cache=cache, targets=("shapes",), views=two_views.views)
    assert len(dataset) == 24
    teacher, seen = two_views.teachers[0].build("cpu"), []
    for number in range(3):
        _, arrays = dataset.read(5, number)
        outputs = teacher(image_tensor(arrays["image"])[None])["shapes"][0]
        stored = torch.from_numpy(arrays["shapes.value"]).float()
        torch.testing.assert_close(stored, outputs, atol=2e-3, rtol=2e-3)
        seen.append(arrays["image"].tobytes())
    assert seen[0] == seen[2] != seen[1]
    assert (train(two_views) / "student.safetensors").is_file()


def test_a_cache_of_other_views_is_refused_with_both_sides(two_views):
    cache_teacher(two_views, ALONE)
    with pytest.raises(UserError, match="none of the 1 caches") as refused:
        train(replace(two_views, views=type(two_views).__dataclass_fields__["views"].default))
    assert "Halves" in str(refused.value) and "Views" in str(refused.value)
