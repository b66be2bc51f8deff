from dataclasses import replace

import pytest

from stillroom.planning.describe_plan import describe, flags, recommendation
from stillroom.planning.measure import Measured
from stillroom.planning.run_plan import reckon


@pytest.fixture
def plan(numbers, tiny_recipe):
    """Return a plan of the tiny recipe with round numbers, some of them changed."""

    def plan(costs=None, epochs=None, codec=("inner", "float16"), **setting):
        measured = Measured(costs=costs or numbers.costs, sources=("teachers 30 ms",), notes=())
        recipe = replace(tiny_recipe, codec=dict([codec]))
        setting = {"epochs": epochs or 10, **setting}
        return reckon(recipe, measured, replace(numbers.setting, **setting))

    return plan


def with_small(numbers):
    other = replace(numbers.big, row_bytes=0.25e6, error=6.0)
    codecs = {"inner": {"float16": numbers.big, "stochastic:6.0": other}}
    return replace(numbers.costs, codecs=codecs)


def test_it_says_when_a_cache_pays_and_which_flags_make_it(plan):
    found = plan()
    assert recommendation(found) == (
        "Cache: 11 GB, 40.5 s of extraction, paid for after 2 of 10 epochs; with it all epochs take"
        " 2.34 min, with the teachers in the step they would take 6.67 min."
    )
    assert flags(found) == ["flags: --codec.inner float16"]


def test_it_says_how_many_epochs_would_pay(plan):
    found = plan(epochs=1)
    assert recommendation(found).startswith("Do not cache: with the quickest codecs extraction and")
    assert recommendation(found).endswith("it would pay from --epochs 2 on.")
    assert flags(found) == []
    assert " never" in describe(found)


def test_it_says_which_disk_would_pay(plan):
    said = recommendation(plan(gpus=8))
    assert "a disk of more than 2.02 GB/s (now 2)" in said


def test_it_says_where_the_cores_are_too_few(plan, numbers):
    said = recommendation(plan(costs=replace(numbers.costs, teacher_ms=0.5), readers=1))
    assert "more than 1 cores that read" in said and "more than 0.5 ms a row" in said


def test_it_says_where_there_is_no_room(plan):
    said = recommendation(plan(free_bytes=1e9))
    assert said.startswith("There is not enough room for a cache: the smallest one takes 11.6 GB")
    assert flags(plan(free_bytes=1e9)) == []


def test_it_names_another_codec_and_why(plan, numbers):
    found = plan(costs=with_small(numbers), gpus=8)
    assert "instead of the recipe's (which would never pay)" in recommendation(found)
    assert flags(found) == ["flags: --codec.inner stochastic:6.0"]
    assert "whole cache  best" in describe(found)


def test_it_names_a_codec_that_would_save_room_alone(plan, numbers):
    said = recommendation(plan(costs=with_small(numbers), epochs=100))
    assert (
        said.startswith("Cache: 11 GB") and "--codec.inner stochastic:6.0 would take 275 MB" in said
    )


def test_a_target_without_a_flag_is_named_as_an_edit_of_the_recipe(plan, numbers):
    found = plan(costs=with_small(numbers), gpus=8, codec=("shapes", "float16"))
    assert flags(found) == [
        'in the recipe, which has no flag for it: codec={"inner": "stochastic:6.0"}'
    ]


def test_the_table_has_a_line_for_each_codec_and_one_for_the_whole(plan, numbers):
    lines = describe(plan(costs=with_small(numbers))).splitlines()
    words = [line.split() for line in lines]
    (own,) = (w for w in words if w[:3] == ["inner", "float16", "*"])
    assert own[3:] == ["10", "0.001", "25", "8", "11", "0.0112", "100", "25", "student", "2"]
    (other,) = (w for w in words if w[:2] == ["inner", "stochastic:6.0"])
    assert other[2:6] == ["0.25", "6", "25", "8"]
    (whole,) = (w for w in words if w[:3] == ["whole", "cache", "*"])
    assert whole[3:] == ["10", "0.001", "25", "8", "11", "0.0112", "100", "25", "student", "2"]
