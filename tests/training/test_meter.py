"""A line of the log says what was seen since the last one."""

import pytest
import torch

from stillroom.training.meter import TermMeter
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
