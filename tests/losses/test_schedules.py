"""Temperature schedules against the formulas worked by hand."""

import pytest

from stillroom.errors import UserError
from stillroom.losses.schedules import Temperature, epoch_progress


@pytest.mark.parametrize(
    ("kind", "quarter"),
    [("linear", 2.5), ("cosine", 1 + 2 * 0.8535533905932737), ("exponential", 3 * 3**-0.25)],
)
def test_a_schedule_follows_its_formula(kind: str, quarter: float):
    temperature = Temperature(start=3.0, end=1.0, kind=kind)
    assert temperature.at(0.0) == pytest.approx(3.0)
    assert temperature.at(0.25) == pytest.approx(quarter)
    assert temperature.at(1.0) == pytest.approx(1.0)


def test_a_constant_stays():
    assert [Temperature(start=2.0).at(p) for p in (0.0, 0.5, 1.0)] == [2.0, 2.0, 2.0]


def test_progress_goes_from_zero_to_one_over_the_epochs():
    assert [epoch_progress(e, 5) for e in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_the_only_epoch_has_the_final_temperature():
    assert Temperature(start=3.0, end=1.0, kind="cosine").at(epoch_progress(0, 1)) == 1.0


@pytest.mark.parametrize(
    "fields",
    [
        {"start": 0.0},
        {"start": float("nan")},
        {"start": 2.0, "end": -1.0, "kind": "linear"},
        {"start": 2.0, "kind": "cosine"},
        {"start": 2.0, "end": 1.0},
    ],
)
def test_what_is_no_temperature_is_refused(fields: dict):
    with pytest.raises(UserError):
        Temperature(**fields)
