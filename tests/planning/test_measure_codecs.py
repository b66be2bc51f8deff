import threading
from dataclasses import replace

import pytest
import torch

from stillroom.cache import open_cache
from stillroom.errors import Stopped, UserError
from stillroom.losses import FeatureMSE, LogitMSE
from stillroom.pictures.dataset import open_pictures
from stillroom.planning.measure_codecs import candidates, measure_codecs, measure_shard
from stillroom.planning.measure_teachers import measure_teachers

GOING_ON = threading.Event()


@pytest.fixture(scope="module")
def recipe(make_tiny, tiny_world, tmp_path_factory):
    """The recipe of the tiny world with terms that are linear in what they read."""
    tiny = make_tiny.tiny_recipe(tiny_world, tmp_path_factory.mktemp("runs"))
    terms = (FeatureMSE(target="inner", tap="encoder.2", weight=1.0), LogitMSE(target="shapes"))
    return replace(tiny, terms=terms, codec={"shapes": "float16", "inner": "stochastic:3.0"})


@pytest.fixture(scope="module")
def answers(recipe, tiny_world):
    pictures = open_pictures(tiny_world / "shards")
    return measure_teachers(recipe, pictures, "cpu", 24, 60.0, GOING_ON)


def test_the_candidates_are_the_recipes_own_and_what_its_terms_can_read(
    recipe, answers, tiny_recipe
):
    specs = {spec.name: spec for spec in answers.specs}
    assert candidates(recipe, specs["shapes"]) == ("float16", "logits8")
    assert candidates(recipe, specs["inner"]) == (
        *("stochastic:3.0", "float16", "int8", "stochastic:0.3", "stochastic:1.0"),
        "stochastic:6.0",
    )
    assert candidates(tiny_recipe, replace(specs["inner"], codec="int8")) == ("int8", "float16")


def test_every_candidate_is_written_as_the_cache_writes_it(recipe, answers, tiny_world, tmp_path):
    found, notes = measure_codecs(tmp_path, recipe, answers, "cpu", GOING_ON)
    (path,) = (tiny_world / "cache").iterdir()
    cache = open_cache(path)
    rows = sum(map(cache.shard_rows, cache.shard_ids()))
    real = sum(map(cache.shard_bytes, cache.shard_ids())) / rows
    both = found["shapes"]["float16"].row_bytes + found["inner"]["float16"].row_bytes
    assert both == pytest.approx(real, rel=0.05)  # 8 rows a shard there, 12 here
    assert notes == [] and found["inner"].keys() == set(candidates(recipe, answers.specs[1]))
    inner = found["inner"]
    assert inner["float16"].error < 1e-6 and inner["int8"].error < 1e-3
    for error in (0.3, 1.0, 3.0, 6.0):
        assert inner[f"stochastic:{error}"].error == pytest.approx(error, rel=0.5)  # few values
    assert inner["float16"].fit_ms is None and inner["stochastic:1.0"].fit_ms > 0
    for cost in inner.values():
        assert min(cost.encode_ms, cost.write_ms, cost.publish_ms) > 0
        assert min(cost.read_ms, cost.decode_ms) > 0


def test_a_candidate_that_cannot_keep_the_rows_is_named(recipe, answers, tmp_path):
    large = replace(answers, targets={**answers.targets, "inner": answers.targets["inner"] + 1e5})
    found, notes = measure_codecs(tmp_path, recipe, large, "cpu", GOING_ON)
    assert "float16" not in found["inner"] and "int8" in found["inner"]
    assert notes == [
        "inner cannot be kept as float16: a teacher's output does not fit into float16"
    ]


def test_the_recipes_own_codec_must_keep_the_rows(recipe, answers, tmp_path):
    flat = {**answers.targets, "inner": torch.ones_like(answers.targets["inner"])}
    with pytest.raises(UserError, match="never changes"):
        measure_codecs(tmp_path, recipe, replace(answers, targets=flat), "cpu", GOING_ON)


def test_a_target_of_a_nonlinear_term_is_told(tiny_recipe, answers, tmp_path):
    _, notes = measure_codecs(tmp_path, tiny_recipe, answers, "cpu", GOING_ON)
    assert notes == ["a term that reads inner is not linear in it: no stochastic codec is tried"]


def test_a_shard_takes_time_besides_its_rows(recipe, answers, tmp_path):
    assert 0 < measure_shard(tmp_path, recipe, answers, "cpu", GOING_ON) < 5


def test_it_stops_between_codecs(recipe, answers, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        measure_codecs(tmp_path, recipe, answers, "cpu", stop)
