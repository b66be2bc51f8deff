"""What can be known to be wrong with a recipe before any work."""

from dataclasses import replace

import pytest

from stillroom.errors import UserError
from stillroom.losses import CrossEntropy, FeatureMSE, LogitMSE, Needs
from stillroom.recipe import check
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
