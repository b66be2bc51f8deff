import threading
from dataclasses import replace

import pytest
import torch

import stillroom.planning.measure_teachers as teachers
from stillroom.pictures.dataset import open_pictures
from stillroom.pictures.views import Views
from stillroom.types import TargetSpec


@pytest.fixture
def pictures(tiny_world):
    return open_pictures(tiny_world / "shards")


def test_a_sample_is_spread_over_the_training_shards(tiny_recipe, pictures):
    places = teachers.sample(tiny_recipe, pictures, 6)
    shards = sorted(str(shard) for shard, _ in places)
    assert shards == [f"train-{n:06d}" for n in (0, 0, 1, 1, 2, 2)]
    assert len({row.key for _, row in places}) == 6
    every = teachers.sample(tiny_recipe, pictures, 1000)
    assert len(every) == 24 and {shard.split for shard, _ in every} == {"train"}


def test_a_sample_shows_every_view(tiny_recipe, pictures):
    recipe = replace(tiny_recipe, views=Views(count=3))
    numbers = {row.view.number for _, row in teachers.sample(recipe, pictures, 24)}
    assert numbers == {0, 1, 2}


def test_the_answers_that_are_kept_are_those_of_their_rows(tiny_recipe, pictures, monkeypatch):
    monkeypatch.setattr(teachers, "KEPT_ROWS", 5)
    stop = threading.Event()
    found = teachers.measure_teachers(tiny_recipe, pictures, "cpu", 24, 60.0, stop)
    assert found.num_rows == 24 and found.teacher_ms > 0 and found.picture_ms > 0
    sample = [row.key for _, row in teachers.sample(tiny_recipe, pictures, 24)]
    assert [row.key for row, _ in found.kept] == sample[:5]
    (built,) = (config.build("cpu") for config in tiny_recipe.teachers)
    wanted = teachers.run_teachers([built], found.kept, "cpu")
    assert found.targets.keys() == wanted.keys() == {"shapes", "inner"}
    for name, values in wanted.items():
        torch.testing.assert_close(found.targets[name], values)


def test_slow_teachers_run_on_fewer_pictures(tiny_recipe, pictures):
    found = teachers.measure_teachers(tiny_recipe, pictures, "cpu", 24, 0.0, threading.Event())
    assert found.num_rows == tiny_recipe.micro_batch


def test_wide_answers_are_kept_of_fewer_rows():
    spec = TargetSpec(name="inner", shape=(1024, 160, 160), stride=4, kind="features")
    assert teachers._most_kept([spec]) == 10  # 105 MB a row, of 1 GiB
