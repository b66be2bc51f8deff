"""A chart has its points where the axes say, and the same in words."""

import re

import pytest

from stillroom.using.charts import Series, chart


def places(html: str, name: str) -> list[tuple[float, float]]:
    d = re.search(rf' d="([^"]*)"><title>{name}</title>', html)
    assert d is not None
    return [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", d[1])]


def tick_places(html: str) -> dict[str, float]:
    found = re.findall(r'<text x="43" y="([\d.]+)" text-anchor="end">([^<]+)<', html)
    return {text: float(y) - 4 for y, text in found}


@pytest.mark.parametrize("log", [False, True])
def test_a_value_lies_at_the_tick_of_its_height(log):
    html = chart("t", [Series(name="a", points=[(0, 1.0), (5, 10.0), (10, 100.0)])], log=log)
    ticks, points = tick_places(html), places(html, "a")
    assert points[2][1] == pytest.approx(ticks["100"], abs=0.1)
    assert (points[0][0] + points[2][0]) / 2 == pytest.approx(points[1][0], abs=0.1)
    if log:
        assert points[1][1] == pytest.approx(ticks["10"], abs=0.1)
        assert (ticks["1"] + ticks["100"]) / 2 == pytest.approx(ticks["10"], abs=0.1)


def test_the_words_have_first_last_least_and_most():
    html = chart("t", [Series(name="loss", points=[(1, 3.0), (2, 0.5), (3, 4.0), (4, 2.0)])])
    assert "loss: from 3 at step 1 to 2 at step 4; least 0.5 at 2, most 4 at 3" in html


def test_long_lines_are_thinned_and_keep_their_end():
    points = [(i, float(i)) for i in range(5001)]
    html = chart("t", [Series(name="a", points=points)])
    assert 300 < len(places(html, "a")) <= 402 and "to 5000 at step 5000" in html


@pytest.mark.parametrize("points", [[(1, 0.0)], [(1, -2.0)], [(3, 1e-9)]])
def test_one_point_or_none_above_zero_breaks_nothing(points):
    assert chart("t", [Series(name="a", points=points)]).count('class="s0"') == 2
    seen = chart("t", [Series(name="a", points=points)], log=True)
    assert (seen != "") == (points[0][1] > 0)


def test_without_points_there_is_no_chart():
    assert chart("t", []) == chart("t", [Series(name="a", points=[])]) == ""


def test_names_are_text_whatever_they_hold():
    html = chart("<b>", [Series(name='"<i>', points=[(1, 1.0), (2, 2.0)])], note="<u>")
    assert not re.search("<[biu]>", html)
