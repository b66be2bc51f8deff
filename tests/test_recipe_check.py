"""What can be known to be wrong with a recipe before any work."""

from dataclasses import replace

import pytest

from stillroom.errors import UserError
from stillroom.losses import CrossEntropy, FeatureMSE, LogitMSE, Needs
from stillroom.pictures.dataset import open_pictures
from stillroom.recipe import Data
from stillroom.recipe_check import check
from stillroom.recipes.tiny import tiny


class TapAlone(CrossEntropy):
    needs = Needs(tap="encoder.2")


@pytest.mark.parametrize(
    ("term", "what"),
    [
        (CrossEntropy(weight=-1.0), "weight of CrossEntropy"),
        (CrossEntropy(weight=float("nan")), "weight of CrossEntropy"),
        (CrossEntropy(weight=float("inf")), "weight of CrossEntropy"),
        (FeatureMSE(target="inner", tap="encoder.2", hidden=0), "hidden 0"),
        (LogitMSE(target="inner"), "needs logits"),
        (LogitMSE(target="nobody"), "'nobody'"),
        (TapAlone(), "with no target"),
    ],
)
def test_a_term_that_cannot_work_is_refused(term, what):
    check(tiny())
    with pytest.raises(UserError, match=what):
        check(replace(tiny(), terms=(*tiny().terms, term)))


@pytest.mark.parametrize("size", [(33, 48), (32, 49)])
def test_a_size_larger_than_the_packed_pictures_is_refused_with_both(tiny_recipe, size):
    pictures = open_pictures(tiny_recipe.data.shards)
    check(replace(tiny_recipe, data=replace(tiny_recipe.data, size=(16, 24))), pictures)
    with pytest.raises(UserError, match="larger than the packed") as refused:
        check(replace(tiny_recipe, data=replace(tiny_recipe.data, size=size)), pictures)
    assert refused.value.wanted == "at most 32 48"


def test_a_size_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"--data\.size"):
        Data(shards="shards", size=(0, 48))


@pytest.mark.parametrize(
    ("field", "value"),
    [("hsv", (0.1, 1.5, 0.3)), ("blur", -1.0), ("noise", float("nan")), ("jpeg", 0), ("jpeg", 96)],
)
def test_a_change_of_light_that_cannot_be_is_refused_by_its_flag(field, value):
    with pytest.raises(UserError, match=rf"--augment\.{field}"):
        check(replace(tiny(), augment=replace(tiny().augment, **{field: value})))
