"""What is to come is said once, from batches after the first, for all processes together."""

from stillroom.extraction import estimate as module
from stillroom.extraction.estimate import Estimate


def test_size_and_time_are_those_of_the_rows_that_are_left(monkeypatch):
    clock, said = iter([100.0, 106.0]), []
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    estimate = Estimate(7200, 2, said.append)
    for _ in range(9):
        estimate.add(4, 2_000_000)
    # 12 rows in 6 s by each of two: 4 a second, half an hour; 8 MB of 16 rows: .5 MB a row
    assert said == [
        "by the first 16 rows: 0.5 MB and 0.25 s a row, so 3600 MB and about 30 min for 7200 rows"
    ]


def test_what_is_nearly_done_needs_no_estimate():
    said = []
    estimate = Estimate(16, 1, said.append)
    for _ in range(4):
        estimate.add(4, 1)
    assert said == []
