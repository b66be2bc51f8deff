"""Running the teachers again finds rows that no checksum can call wrong."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import stillroom.extraction.extract as extract
from stillroom.cache.folder import open_cache
from stillroom.checking.check import check_cache
from stillroom.checking.rerun import draw, refuse_other_teachers, rerun
from stillroom.checking.run_check import CheckOptions, run_check
from stillroom.errors import UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.jsonfile import file_sha256, read_json, write_json
from stillroom.pictures.loader import image_tensor
from stillroom.teachers.torch import BuiltTorchTeacher
from stillroom.types import ShardId

both_bodies = pytest.mark.parametrize("body", ["zarr", "tar"], indirect=True)
SHARD = ShardId("train", 1)


def every_row(cache):
    return [(id_, i) for id_ in cache.shard_ids() for i in range(cache.shard_rows(id_))]


@pytest.fixture
def swapped(spoilt_recipe, tmp_path, monkeypatch):
    """Stage 1 with a fault in it: the first two rows of the third batch are exchanged."""
    answer, seen = extract.run_teachers, []

    def answering(teachers, batch, device):
        outputs = answer(teachers, batch, device)
        seen.append([row for row, _ in batch])
        if len(seen) == 3:
            order = [1, 0, *range(2, len(batch))]
            outputs = {name: target[order] for name, target in outputs.items()}
        return outputs

    monkeypatch.setattr(extract, "run_teachers", answering)
    run = replace(spoilt_recipe.run, cache=str(tmp_path / "swapped"))
    recipe = replace(spoilt_recipe, run=run)
    cache = cache_teacher(recipe, ProcessContext())
    monkeypatch.setattr(extract, "run_teachers", answer)
    return recipe, cache, {row.key for row in seen[2][:2]}


@pytest.fixture
def change_answers(spoilt_recipe, monkeypatch):
    """Lets the teacher's answers pass through a function before anybody sees them."""
    call = BuiltTorchTeacher.__call__

    def change(function):
        def calling(self, image, **options):
            return {name: function(v) for name, v in call(self, image, **options).items()}

        monkeypatch.setattr(BuiltTorchTeacher, "__call__", calling)

    return change


@both_bodies
def test_rows_of_an_honest_cache_are_within_the_bound_and_the_figures_are_right(
    spoilt, spoilt_recipe, pictures
):
    cache = open_cache(spoilt)
    rows = every_row(cache)[5:11]  # over two shards
    compared, problems = rerun(cache, spoilt_recipe, pictures, rows, "cpu")
    assert problems == []
    teacher = spoilt_recipe.teachers[0].build("cpu")
    outputs, stored = {}, {}
    for shard, i in rows:
        with cache.reader(shard) as reader:
            source = pictures.open(shard)
            image = image_tensor(source.read(source.keys.index(reader.rows[i].key)).image)
            for name, value in teacher(image[None]).items():
                outputs.setdefault(name, []).append(value.numpy().astype(np.float64))
                stored.setdefault(name, []).append(reader.read(i)[f"{name}.value"][None])
    for figures in compared:
        a, b = np.concatenate(outputs[figures.target]), np.concatenate(stored[figures.target])
        error = np.abs(a - b)
        assert figures.num_rows == 6
        assert figures.largest == pytest.approx(error.max(), rel=1e-2)
        off = np.sqrt((error**2).sum((1, 2, 3)) / (a**2).sum((1, 2, 3)))
        assert figures.relative == pytest.approx(off.max(), rel=1e-2)
        assert 1 - 1e-6 < figures.cosine <= 1 + 1e-12
        assert figures.num_wrong == 0
        if figures.target == "shapes":
            same = (a.argmax(1) == b.astype(np.float64).argmax(1)).mean()
            assert figures.agreement == pytest.approx(same, abs=1e-3)
        else:
            assert figures.agreement is None
        assert "6 rows compared, 0 wrong" in figures.lines()[0]


def test_a_row_of_another_picture_is_found_though_every_checksum_is_right(swapped, pictures):
    recipe, cache, keys = swapped
    assert check_cache(cache.path, pictures).problems == ()
    compared, problems = rerun(cache, recipe, pictures, every_row(cache), "cpu")
    assert len(problems) == 2 * len(keys) == 4  # two targets of each
    assert {problem.shard for problem in problems} == {SHARD}
    assert all(any(f"key {key} " in problem.what for key in keys) for problem in problems)
    assert all(figures.num_wrong == 2 for figures in compared)
    assert "32 rows compared, 2 wrong" in compared[0].lines()[0]


def test_rows_of_other_pixels_are_named_with_versions_and_no_repair_hides_them(
    spoilt, spoilt_recipe, pictures
):
    file = next(spoilt.glob(f"{SHARD}.*")) / "shard.json"
    body = read_json(file)
    body["rows"]["pixels"][3] ^= 1
    body["provenance"]["versions"]["pillow"] = "9.1.0"
    write_json(file, body)
    assert open_cache(spoilt).finalize()
    cache = open_cache(spoilt)
    compared, (problem,) = rerun(cache, spoilt_recipe, pictures, every_row(cache), "cpu")
    assert (problem.kind, problem.shard) == ("pictures", SHARD)
    assert body["rows"]["key"][3] in problem.what and "pillow 9.1.0" in problem.what
    assert all(figures.num_wrong == 0 for figures in compared)
    options = CheckOptions(rerun=32, repair=True)
    assert problem in run_check(spoilt, spoilt_recipe, None, options).problems


def test_a_shard_with_a_wrong_row_is_made_again_and_no_other(swapped, tmp_path):
    recipe, cache, _ = swapped
    before = {path: path.stat().st_ino for path in cache.path.glob("*.*/**/*")}
    options = CheckOptions(rerun=32, repair=True)
    found = run_check(cache.path, recipe, None, options)
    assert found.is_well, found.problems
    touched = {p for p, inode in before.items() if not p.exists() or p.stat().st_ino != inode}
    assert touched and all(f"{SHARD}." in str(path) for path in touched)
    again = run_check(cache.path, recipe, None, CheckOptions(rerun=32))
    assert again.is_well and all(figures.num_wrong == 0 for figures in again.compared)


def test_when_most_rows_differ_no_shard_is_at_fault_and_nothing_is_moved(
    spoilt, spoilt_recipe, change_answers
):
    change_answers(lambda value: value + 1)
    found = run_check(spoilt, spoilt_recipe, None, CheckOptions(rerun=8, repair=True))
    assert not found.is_well
    assert "left alone" in found.repaired[0]
    assert not list((spoilt / "quarantine").iterdir())


@pytest.mark.parametrize(("factor", "num_wrong"), [(1 + 1e-5, 0), (1.003, 32), (0.0, 32)])
def test_the_tolerance_passes_other_kernels_and_not_another_scale(
    spoilt, spoilt_recipe, pictures, change_answers, factor, num_wrong
):
    change_answers(lambda value: value * factor)
    cache = open_cache(spoilt)
    compared, problems = rerun(cache, spoilt_recipe, pictures, every_row(cache), "cpu")
    assert [figures.num_wrong for figures in compared] == [num_wrong] * 2
    assert len(problems) == 2 * num_wrong
    json.dumps([figures.as_json() for figures in compared], allow_nan=False)
    assert all(figures.lines() for figures in compared)


def test_a_teacher_that_now_says_nan_is_told_as_such(spoilt, spoilt_recipe, change_answers):
    change_answers(lambda value: value * math.nan)
    found = run_check(spoilt, spoilt_recipe, None, CheckOptions(rerun=3))
    assert len(found.problems) == 6
    assert all("not finite" in problem.what for problem in found.problems)
    json.dumps(found.as_json(), allow_nan=False)
    assert found.lines()


def test_a_draw_is_a_function_of_the_seed_and_reaches_every_row(spoilt):
    cache = open_cache(spoilt)
    ids = cache.shard_ids()
    seven = draw(cache, ids, 7, seed=1)
    assert seven == draw(cache, ids, 7, seed=1) == sorted(set(seven))
    assert len(seven) == 7
    assert seven != draw(cache, ids, 7, seed=2)
    assert draw(cache, ids, 1000, seed=1) == every_row(cache)
    assert all(shard == ids[2] for shard, _ in draw(cache, ids[2:3], 7, seed=1))
    seen = {row for seed in range(30) for row in draw(cache, ids, 7, seed=seed)}
    assert len(seen) == 32


def test_other_teachers_are_refused_with_both_sides(spoilt, spoilt_recipe, tmp_path, make_tiny):
    cache = open_cache(spoilt)
    refuse_other_teachers(cache, spoilt_recipe)
    (teacher,) = spoilt_recipe.teachers
    torch.manual_seed(0)
    make_tiny.make_teacher(tmp_path / "teacher")  # equal: it seeds itself
    weights = tmp_path / "teacher" / "student.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    about = read_json(weights.with_name("student.json"))
    write_json(weights.with_name("student.json"), about | {"weights_sha256": file_sha256(weights)})
    others = {
        "weights": replace(teacher, path=str(tmp_path / "teacher")),
        "tap": replace(teacher, taps=(("inner", "encoder.1"),)),
        "missing": replace(teacher, taps=()),
        "more": replace(teacher, taps=(*teacher.taps, ("deep", "encoder.1"))),
    }
    for other in others.values():
        with pytest.raises(UserError, match=r"not made by the teachers(.|\n)*found:(.|\n)*wanted:"):
            refuse_other_teachers(cache, replace(spoilt_recipe, teachers=(other,)))
    for name in ("tap", "missing", "more"):  # what can be seen without the teachers' files
        with pytest.raises(UserError):
            other = replace(spoilt_recipe, teachers=(others[name],))
            refuse_other_teachers(cache, other, with_files=False)


def test_without_the_teachers_files_the_check_says_so_and_a_rerun_is_refused(
    spoilt, spoilt_recipe, tmp_path
):
    gone = replace(spoilt_recipe.teachers[0], path=str(tmp_path / "gone"))
    recipe = replace(spoilt_recipe, teachers=(gone,))
    found = run_check(spoilt, recipe, None, CheckOptions())
    assert found.is_well and "teachers' files were not compared" in found.lines()[0]
    for options in (CheckOptions(rerun=3), CheckOptions(repair=True)):
        with pytest.raises(UserError, match="gone"):
            run_check(spoilt, recipe, None, options)


def test_rows_are_drawn_from_sound_shards_only(spoilt, spoilt_recipe):
    file = max(
        (path for path in spoilt.glob(f"{SHARD}.*/**/*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    Path(file).write_bytes(data)
    found = run_check(spoilt, spoilt_recipe, None, CheckOptions(rerun=32))
    assert {p.kind for p in found.problems} == {"shard"}
    assert [figures.num_rows for figures in found.compared] == [24, 24]
    assert any("24 rows: no more are sound" in note for note in found.notes)
