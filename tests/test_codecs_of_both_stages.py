"""Each codec goes through stage 1, the check and stage 2."""

from dataclasses import replace

import pytest
import torch

import stillroom.extraction.encode as encoding
from stillroom.cache.folder import Cache
from stillroom.checking.check import check_cache
from stillroom.checking.rerun import rerun
from stillroom.codecs.int8 import Int8
from stillroom.errors import UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.losses import FeatureMSE, LogitMSE, SoftKL
from stillroom.pictures.dataset import open_pictures
from stillroom.pictures.loader import image_tensor
from stillroom.recipe import Recipe
from stillroom.training.batches import to_batch
from stillroom.training.find_cache import find_cache
from stillroom.training.loop import train
from stillroom.training.stream import RowDataset, collate
from stillroom.types import Batch, ShardId

ALONE = ProcessContext()
PAIRS = (("int8", "logits8"), ("stochastic:1.0", "stochastic:0.3"), ("stochastic:10.0", "int8"))


def with_codecs(recipe: Recipe, folder, inner: str, shapes: str) -> Recipe:
    run = replace(recipe.run, cache=str(folder / "cache"))
    return replace(recipe, run=run, epochs=1, codec={"inner": inner, "shapes": shapes})


def every_row(cache: Cache):
    return [(id_, i) for id_ in cache.shard_ids() for i in range(cache.shard_rows(id_))]


@pytest.fixture(params=PAIRS, ids=" ".join)
def recipe(request, tiny_recipe, tmp_path) -> Recipe:
    return with_codecs(tiny_recipe, tmp_path, *request.param)


@pytest.fixture
def noisy(tiny_recipe, tmp_path) -> Recipe:
    return with_codecs(tiny_recipe, tmp_path, *PAIRS[1])


def test_a_cache_of_any_codec_is_made_checked_run_again_and_trained_from(recipe):
    cache = cache_teacher(recipe, ALONE)
    pictures = open_pictures(recipe.data.shards)
    assert check_cache(cache.path, pictures).problems == ()
    compared, problems = rerun(cache, recipe, pictures, every_row(cache), "cpu")
    assert problems == [] and [figures.num_rows for figures in compared] == [32, 32]
    assert (train(recipe) / "student.safetensors").is_file()


def test_the_error_of_each_row_is_measured_and_kept(recipe):
    cache = cache_teacher(recipe, ALONE)
    teacher, pictures = recipe.teachers[0].build("cpu"), open_pictures(recipe.data.shards)
    shard = cache.shard_ids()[1]
    with cache.reader(shard) as reader:
        for i in range(len(reader)):
            picture = pictures.open(shard).read(i)
            outputs = teacher(image_tensor(picture.image)[None])
            (row,) = cache.rows(picture.key)
            for name, value in row.targets.items():
                found = float((value - outputs[name][0]).double().square().mean())
                assert reader.errors[name][i] == pytest.approx(found, rel=1e-2)
                assert found > 0


def test_another_pictures_row_is_found_however_coarse_the_codec(tiny_recipe, tmp_path, monkeypatch):
    """With one step so wide, every row is within every other's bound, and the draws are shared."""
    recipe = with_codecs(tiny_recipe, tmp_path, "stochastic:10.0", "stochastic:10.0")
    encode = encoding.encode

    def swapping(cache, batch, outputs):
        if cache.is_fitted and batch[0][0].key == first:
            order = [1, 0, *range(2, len(batch))]
            outputs = {name: target[order] for name, target in outputs.items()}
        return encode(cache, batch, outputs)

    pictures = open_pictures(recipe.data.shards)
    first, second = pictures.open(pictures.shard_ids()[1]).keys[:2]
    monkeypatch.setattr("stillroom.extraction.extract.encode", swapping)
    cache = cache_teacher(recipe, ALONE)
    compared, problems = rerun(cache, recipe, pictures, every_row(cache), "cpu")
    assert [figures.num_wrong for figures in compared] == [2, 2]
    assert {key for key in (first, second) for p in problems if f"key {key} " in p.what} == {
        first,
        second,
    }


def test_a_codec_that_breaks_its_promise_is_refused_by_picture(tiny_recipe, tmp_path, monkeypatch):
    recipe = with_codecs(tiny_recipe, tmp_path, "int8", "int8")
    honest = Int8.decode
    monkeypatch.setattr(Int8, "decode", lambda *arguments: honest(*arguments) * 1.01)
    with pytest.raises(UserError, match="as promised") as refused:
        cache_teacher(recipe, ALONE)
    first = open_pictures(recipe.data.shards).open(ShardId("train", 0)).keys[0]
    assert first in str(refused.value) and "error_bound" in str(refused.value)
    assert not list((tmp_path / "cache").glob("*/*.zarr"))


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_a_shard_worse_than_its_codecs_promise_is_refused(
    tiny_recipe, tmp_path, monkeypatch, scale
):
    """The rows of one shard have other amplitudes than those that the step was fitted on; where
    they are larger, the error is a smaller share of them.
    """
    recipe = with_codecs(tiny_recipe, tmp_path, "stochastic:0.3", "float16")
    keys = open_pictures(recipe.data.shards).open(ShardId("train", 1)).keys

    def scaling(cache, batch, outputs):
        if batch[0][0].key in keys:
            middle = cache.fitted["inner"]["offset"]
            inner = middle + scale * (outputs["inner"] - middle)
            outputs = outputs | {"inner": inner}
        return encoding.encode(cache, batch, outputs)

    monkeypatch.setattr("stillroom.extraction.extract.encode", scaling)
    if scale >= 1:
        assert cache_teacher(recipe, ALONE).is_complete
        return
    with pytest.raises(UserError, match="as promised") as refused:
        cache_teacher(recipe, ALONE)
    text = str(refused.value)
    assert "stochastic:0.3 did not keep inner of shard train-000001" in text
    assert "--codec.inner int8" in text and "at most 1.5 times" in text
    (folder,) = (tmp_path / "cache").iterdir()
    assert [path.name for path in folder.glob("*.zarr")] == ["train-000000.zarr"]


def test_two_texts_of_one_codec_are_one_cache(tiny_recipe, tmp_path):
    one = cache_teacher(with_codecs(tiny_recipe, tmp_path, "stochastic:1", "int8"), ALONE)
    two = cache_teacher(with_codecs(tiny_recipe, tmp_path, "stochastic:1.0", "int8"), ALONE)
    assert one.path == two.path and one.specs["inner"].codec == "stochastic:1.0"


def test_terms_that_noise_biases_are_named_once(noisy, capsys):
    cache_teacher(noisy, ALONE)
    capsys.readouterr()
    find_cache(noisy, open_pictures(noisy.data.shards), verbose=True)
    told = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(told) == 2
    assert "kl is not linear in its target 'shapes'" in told[0]
    assert "feature_cosine is not linear in its target 'inner'" in told[1]
    find_cache(noisy, open_pictures(noisy.data.shards), verbose=False)
    assert capsys.readouterr().out == ""


def test_nothing_is_said_of_terms_that_read_what_is_not_noisy(tiny_recipe, tmp_path, capsys):
    recipe = with_codecs(tiny_recipe, tmp_path, "int8", "logits8")
    cache_teacher(recipe, ALONE)
    find_cache(recipe, open_pictures(recipe.data.shards), verbose=True)
    assert "warning" not in capsys.readouterr().out


def test_terms_say_of_themselves_whether_they_are_linear():
    terms = (FeatureMSE(target="a", tap="b"), LogitMSE(target="a"), SoftKL(target="a"))
    assert [term.needs.is_linear for term in terms] == [True, True, False]


def read(recipe: Recipe, cache: Cache) -> Batch:
    dataset = RowDataset(
        open_pictures(recipe.data.shards),
        "train",
        cache=cache,
        targets=("inner", "shapes"),
    )
    host = collate([dataset.read(place) for place in range(len(dataset))], pin=False)
    return to_batch(host, torch.device("cpu"), cache)


def test_the_squared_error_that_is_reported_is_that_of_the_targets_own_values(
    noisy, tiny_recipe, tmp_path
):
    """At 24 rows the noise of the correction itself is a few percent; uncorrected it is far off."""
    batch = read(noisy, cache_teacher(noisy, ALONE))
    exact = read(tiny_recipe, cache_teacher(tiny_recipe, ALONE))
    assert batch.noise.keys() == {"inner", "shapes"} and exact.noise == {}
    term = FeatureMSE(target="inner", tap="encoder.2")
    generator = torch.Generator().manual_seed(0)
    target = exact.targets["inner"]
    output = target + 0.3 * target.std() * torch.randn(target.shape, generator=generator)
    outputs = {term.needs.output: output.requires_grad_()}
    wanted = float(term.total(outputs, exact, 0.0).detach())
    found = term.total(outputs, batch, 0.0)
    uncorrected = term.total(outputs, replace(batch, noise={}), 0.0)
    assert float(found.detach()) == pytest.approx(wanted, rel=0.1)
    assert float(uncorrected.detach()) > 2 * wanted
    (gradient,) = torch.autograd.grad(found, output)
    (same,) = torch.autograd.grad(uncorrected, output)
    assert torch.equal(gradient, same)
