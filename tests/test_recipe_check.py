"""What can be known to be wrong with a recipe before any work."""

from dataclasses import replace

import pytest

from stillroom.errors import UserError
from stillroom.losses import CrossEntropy, FeatureMSE, LogitMSE, Needs
from stillroom.pictures.dataset import open_pictures
from stillroom.recipe import Data, Run
from stillroom.recipe_check import check
from stillroom.recipe_optimizer import SGD, StepDecay
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


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"distill_weight": 1.5}, "no such --distill-weight"),
        ({"distill_weight": 0.5, "terms": (CrossEntropy(),)}, "without a term that compares"),
        ({"distill_fade": 0.0}, "no such --distill-fade"),
        ({"distill_end": 0.9}, "no such --distill-end"),
        (
            {"distill_fade": 30.0, "terms": (FeatureMSE(target="inner", tap="encoder.2"),)},
            "--distill-fade needs a teacher's score",
        ),
        ({"ema": 1.0}, "no such --ema"),
        ({"early_stopping": 0}, "no such --early-stopping"),
        ({"schedule": StepDecay(stages=0)}, r"no such --schedule\.stages"),
        ({"optimizer": SGD(lr=0.0)}, r"no such --optimizer\.lr"),
        ({"run": Run(additional_epochs=-1, resume=True)}, r"no such --run\.additional-epochs"),
        (
            {"distill_weight": 0.0, "terms": (LogitMSE(target="shapes"),)},
            "nothing would be learned",
        ),
    ],
)
def test_a_way_of_training_that_cannot_be_is_refused_by_its_flag(change, what):
    with pytest.raises(UserError, match=what):
        check(replace(tiny(), **change))


def test_labels_that_one_number_leaves_without_weight_are_not_needed(tiny_recipe):
    pictures = open_pictures(tiny_recipe.data.shards)
    pictures.classes = ()
    with pytest.raises(UserError, match="need labels"):
        check(tiny_recipe, pictures)
    check(replace(tiny_recipe, distill_weight=1.0), pictures)
