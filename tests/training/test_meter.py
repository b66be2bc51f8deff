"""A line of the log says what was seen since the last one."""

from stillroom.training.meter import step_line
from stillroom.training.setup import prepare


def test_a_line_for_people_names_the_terms_that_were_seen(tiny_recipe):
    figures = {"loss": 1.25, "term_ce": 0.5, "term_kl": None, "term_dice": 0.75, "rows_per_s": 12.3}
    said = step_line(prepare(tiny_recipe), 2, figures)
    assert said == "step 2/6: loss 1.2500 (ce 0.5000, dice 0.7500), 12.3 rows/s"
