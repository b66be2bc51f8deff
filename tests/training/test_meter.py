"""A line of the log says what was seen since the last one."""

import pytest
import torch

from stillroom.training.meter import TermMeter, step_line
from stillroom.training.setup import prepare


def test_means_are_over_the_steps_since_the_last_line_and_none_where_nothing_counts(tiny_recipe):
    context = prepare(tiny_recipe)
    terms = context.recipe.terms
    meter, seen = TermMeter(context), torch.arange(len(terms)) > 0
    for total in (1.0, 5.0):
        meter.add(torch.full((len(terms),), total), 2.0 * seen.double(), torch.ones(()))
    first, *others = [f"term_{term.label}" for term in terms]
    weights = context.recipe.term_weights()
    figures = meter.figures(2, weights)
    assert figures[first] is None and [figures[name] for name in others] == [1.5] * len(others)
    assert figures["loss"] == pytest.approx(1.5 * sum(term.weight for term in terms[1:]))
    meter.add(torch.ones(len(terms)), torch.ones(len(terms), dtype=torch.float64), torch.ones(()))
    assert meter.figures(3, weights)[first] == 1.0


def test_a_line_for_people_names_the_terms_that_were_seen(tiny_recipe):
    figures = {"loss": 1.25, "term_ce": 0.5, "term_kl": None, "term_dice": 0.75, "rows_per_s": 12.3}
    said = step_line(prepare(tiny_recipe), 2, figures)
    assert said == "step 2/6: loss 1.2500 (ce 0.5000, dice 0.7500), 12.3 rows/s"
