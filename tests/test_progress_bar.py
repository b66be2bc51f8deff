"""In a terminal a bar, in the log of a job a line now and then."""

import sys

import tqdm.std

from stillroom.progress_bar import progress_bar


def test_where_there_is_no_terminal_a_line_is_written_every_30_seconds_and_at_the_end(
    capsys, monkeypatch
):
    seconds = iter(range(0, 10_000, 7))  # by the clock, at each look
    monkeypatch.setattr(tqdm.std, "time", lambda: next(seconds))
    bar = progress_bar(total=12, unit="row", desc="cache")
    for _ in range(12):
        bar.update()
    bar.set_postfix_str("3 shards", refresh=False)
    bar.clear()
    bar.close()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" [")[0] for line in lines][-1] == "cache: 100% 12/12"
    assert lines[-1].endswith("s/row, 3 shards]")
    assert 3 <= len(lines) <= 5  # of 12 updates in 84 s or a little more


def test_rows_that_are_gone_through_are_counted_alike(capsys):
    assert list(progress_bar([1, 2, 3], unit="row", desc="audit")) == [1, 2, 3]
    said = capsys.readouterr().err
    assert said.startswith("audit: 100% 3/3 [")
    assert said.count("\n") == 1


def test_in_a_terminal_it_is_tqdm_s_own_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(total=2, desc="cache") as bar:
        bar.update(2)
    assert "\r" in capsys.readouterr().err
