"""By hand: a GPU with four cores that read; 10 MB a row on a disk of 1 GB/s and 2 GB/s."""

from dataclasses import replace
from math import inf

import pytest

from stillroom.planning.arithmetic import disk_for, make_line, make_lines, recommend

OWN = {"inner": "float16"}


def test_stage_1_takes_the_slowest_of_teachers_cores_and_publication(numbers):
    # teacher 30 + encode 5, while (2 + 20 + 4) / 4 are read, written and published; disk 10 + 5
    line = make_line(numbers.costs, numbers.setting, OWN)
    assert line.extraction_s == pytest.approx(1100 * 0.035 + 4 * 0.5)
    assert line.disk_bytes == 1100 * 10e6
    for changes, row_s in (({"write_ms": 200.0}, 0.206 / 4), ({"publish_ms": 40.0}, 0.055)):
        slow = {"inner": {"float16": replace(numbers.big, **changes)}}
        line = make_line(replace(numbers.costs, codecs=slow), numbers.setting, OWN)
        assert line.extraction_s == pytest.approx(1100 * row_s + 2)


def test_a_fitted_codec_runs_the_teachers_on_its_calibration_rows_on_every_gpu(numbers):
    fitted = replace(numbers.big, fit_ms=7.0)
    costs = replace(numbers.costs, codecs={"inner": {"stochastic:6.0": fitted}})
    line = make_line(costs, replace(numbers.setting, gpus=2), {"inner": "stochastic:6.0"})
    assert line.extraction_s == pytest.approx((1100 * 0.035 + 2) / 2 + 64 * 0.037)


def test_a_cached_picture_takes_the_slowest_of_student_cores_and_disk(numbers):
    line = make_line(numbers.costs, numbers.setting, OWN)
    assert (line.cached_per_s, line.bound) == (pytest.approx(100), "student")  # 10 ms
    one = replace(numbers.setting, readers=1)  # 4 + 6 + 2 ms
    line = make_line(numbers.costs, one, OWN)
    assert (line.cached_per_s, line.bound) == (pytest.approx(1000 / 12), "cores")
    line = make_line(replace(numbers.costs, read_gb_per_s=0.5), one, OWN)  # 10.1 MB
    assert (line.cached_per_s, line.bound) == (pytest.approx(1000 / 20.2), "disk")


def test_online_the_teachers_take_their_part_of_every_step(numbers):
    line = make_line(numbers.costs, numbers.setting, OWN)
    assert line.online_per_s == pytest.approx(25)  # 10 + 30 ms


def test_the_disk_is_shared_by_the_gpus(numbers):
    line = make_line(numbers.costs, replace(numbers.setting, gpus=8), OWN)
    assert line.bound == "disk"
    assert line.cached_per_s == pytest.approx(2e9 / 10.1e6)  # what it reads, however many read
    assert line.online_per_s == pytest.approx(8 * 25)
    assert line.extraction_s == pytest.approx((1100 * 8 * 0.015 + 2) / 8)  # 15 ms of disk a row


def test_where_the_device_is_the_cores_they_have_both_to_do(numbers):
    on_cpu = replace(numbers.setting, student_threads=4, teacher_threads=4)
    line = make_line(numbers.costs, on_cpu, OWN)
    assert line.cached_per_s == pytest.approx(1000 / (10 + 12 / 4))
    assert line.online_per_s == pytest.approx(1000 / (40 + 4 / 4))
    assert line.extraction_s == pytest.approx(1100 * (0.035 + 0.026 / 4) + 2)
    one_thread = replace(on_cpu, student_threads=1)
    assert make_line(numbers.costs, one_thread, OWN).cached_per_s == pytest.approx(100)


def test_what_a_device_decodes_is_part_of_its_step(numbers):
    line = make_line(numbers.costs, replace(numbers.setting, decode_on_cores=False), OWN)
    assert line.cached_per_s == pytest.approx(1000 / 12)


def test_a_target_that_no_term_reads_is_kept_and_not_read(numbers):
    codecs = {"inner": {"float16": numbers.big}, "other": {"float16": numbers.big}}
    costs = replace(numbers.costs, codecs=codecs)
    both = {"inner": "float16", "other": "float16"}
    line, alone = (
        make_line(c, numbers.setting, w) for c, w in ((costs, both), (numbers.costs, OWN))
    )
    assert line.disk_bytes == 2 * alone.disk_bytes and line.cached_per_s == alone.cached_per_s


def test_extraction_is_paid_for_by_what_an_epoch_saves(numbers):
    line = make_line(numbers.costs, numbers.setting, OWN)
    assert line.paid_epochs == pytest.approx(40.5 / 30)  # 1000 pictures x (40 - 10) ms
    assert line.pays and line.cached_s == pytest.approx(40.5 + 100)
    assert line.online_s == pytest.approx(400)
    assert not make_line(numbers.costs, replace(numbers.setting, epochs=1), OWN).pays


def test_a_cache_that_is_read_more_slowly_than_the_teachers_answer_never_pays(numbers):
    line = make_line(
        replace(numbers.costs, teacher_ms=0.01, read_gb_per_s=0.5), numbers.setting, OWN
    )
    assert line.paid_epochs == inf and not line.pays


def test_the_disk_that_would_be_fast_enough_is_what_online_training_would_read(numbers):
    line = make_line(numbers.costs, replace(numbers.setting, gpus=8), OWN)
    wanted = disk_for(line, numbers.costs)
    assert wanted == pytest.approx(10.1e6 * 200 / 1e9)
    faster = replace(numbers.costs, read_gb_per_s=1.001 * wanted)
    assert make_line(faster, replace(numbers.setting, gpus=8), OWN).paid_epochs < inf


def small(numbers, **changes):
    """Costs with a second codec that is 40 times smaller."""
    other = replace(numbers.big, row_bytes=0.25e6, error=6.0, **changes)
    codecs = {"inner": {"float16": numbers.big, "stochastic:6.0": other}}
    return replace(numbers.costs, codecs=codecs)


def best(costs, setting):
    return recommend(make_lines(costs, setting), make_line(costs, setting, OWN), costs)


def test_the_recipes_own_codec_is_kept_where_no_other_saves_time(numbers):
    slow = small(numbers, encode_ms=25.0)
    assert best(slow, numbers.setting).codecs == OWN


def test_another_codec_is_recommended_where_the_own_one_waits_for_the_disk(numbers):
    costs = small(numbers)
    eight = replace(numbers.setting, gpus=8)
    assert not make_line(costs, eight, OWN).pays
    assert best(costs, eight).codecs == {"inner": "stochastic:6.0"}


def test_another_codec_is_recommended_where_the_own_one_does_not_fit(numbers):
    tight = replace(numbers.setting, free_bytes=11.5e9)  # 11 GB, and 5 % to spare
    assert best(small(numbers), tight).codecs == {"inner": "stochastic:6.0"}
    assert best(numbers.costs, tight).fits is False
    assert best(numbers.costs, replace(tight, free_bytes=11.6e9)).fits


def test_of_equally_quick_codecs_the_most_exact_is_recommended(numbers):
    exact = replace(numbers.big, row_bytes=0.26e6, error=0.01)
    costs = small(numbers)
    costs = replace(costs, codecs={"inner": {**costs.codecs["inner"], "int8": exact}})
    assert best(costs, replace(numbers.setting, gpus=8)).codecs == {"inner": "int8"}


def test_targets_of_equal_candidates_are_kept_alike(numbers):
    inner = small(numbers).codecs["inner"]
    costs = replace(numbers.costs, codecs={f"tap{i}": inner for i in range(9)})
    assert len(make_lines(costs, numbers.setting)) == 2
