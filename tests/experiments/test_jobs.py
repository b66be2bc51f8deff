"""What is missing is planned in dependency order, each thing once; clashes are refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from stillroom.errors import UserError
from stillroom.experiments.jobs import Request, plan
from stillroom.jsonfile import read_json, write_json
from stillroom.recipe import Recipe
from stillroom.teachers.configs import RunTeacher
from stillroom.training.loop import train


@pytest.fixture
def recipes(tiny_recipe) -> dict[str, Recipe]:
    """A teacher, a student without and one with it, by word."""
    taught = RunTeacher(target="shapes", path="runs/teacher", taps=(("inner", "encoder.2"),))
    plain = replace(tiny_recipe, teachers=(), codec={}, terms=tiny_recipe.terms[:2], epochs=1)
    return {
        "f.py:teacher": replace(plain, name="teacher"),
        "f.py:plain": replace(plain, name="plain"),
        "f.py:with": replace(tiny_recipe, name="with", teachers=(taught,), epochs=1),
    }


def request(recipes, *words, seeds=(0,), flags=(), source=None) -> Request:
    return Request(
        words=words or tuple(recipes),
        seeds=seeds,
        flags=flags,
        source=source,
        known={recipe.name: word for word, recipe in recipes.items()},
        build=recipes.__getitem__,
    )


def named(recipes, *words, **more):
    jobs, runs = plan(request(recipes, *words, **more))
    return {job.name: job for job in jobs}, [run.name for run in runs]


def test_a_teacher_is_trained_once_a_cache_made_once_and_a_student_for_each_seed(recipes):
    jobs, runs = named(recipes, "f.py:plain", "f.py:with", seeds=(0, 1))
    students = ["plain-seed0", "plain-seed1", "with-seed0", "with-seed1"]
    assert sorted(runs) == [*students[:2], "teacher", *students[2:]]
    trained = {f"{what} {run}" for run in runs for what in ("train", "evaluate")}
    assert {*jobs} == {*trained, "cache with"}
    assert jobs["cache with"].needs == ("train teacher",)
    assert jobs["train with-seed1"].needs == ("cache with",)
    assert jobs["train plain-seed1"].needs == jobs["train teacher"].needs == ()
    order = list(jobs)
    for job in jobs.values():
        assert all(order.index(need) < order.index(job.name) for need in job.needs)


def test_a_teacher_that_is_named_itself_is_trained_once_all_the_same(recipes):
    _, runs = named(recipes, seeds=(0, 1))
    assert [run for run in runs if run.startswith("teacher")] == ["teacher"]
    assert named(recipes, "f.py:teacher", seeds=(0, 1))[1] == ["teacher-seed0", "teacher-seed1"]


def test_commands_have_the_common_flags_the_seed_and_the_place_of_the_teachers_run(recipes):
    flags = ("--epochs", "1")
    jobs, _ = named(recipes, "f.py:with", seeds=(4,), flags=flags)
    out = Path(recipes["f.py:with"].run.out)
    place = ["--teachers.0.path", f"{out / 'teacher'}"]
    assert jobs["cache with"].words() == ["cache", "f.py:with", *flags, *place]
    words = ["train", "f.py:with", *flags, *place, "--run.name", "with-seed4"]
    assert jobs["train with-seed4"].words() == [*words, "--seed", "4"]
    words = ["train", "f.py:teacher", *flags, "--run.name", "teacher"]
    assert jobs["train teacher"].words() == words
    assert jobs["evaluate teacher"].words()[:2] == ["evaluate", f"{out / 'teacher'}"]


@pytest.mark.parametrize("flag", [["--teachers.0.path", "x"], ["--teachers.0.path=x"]])
def test_a_teacher_that_a_flag_names_is_the_users_own(recipes, flag):
    jobs, _ = named(recipes, "f.py:with", flags=flag)
    assert "train teacher" not in jobs and jobs["cache with"].needs == ()


def test_a_run_to_begin_from_comes_first(recipes):
    begun = recipes["f.py:plain"]
    recipes["g.py:on"] = replace(
        begun, name="on", student=replace(begun.student, begin="runs/plain")
    )
    jobs, _ = named(recipes, "g.py:on")
    assert jobs["train on-seed0"].needs == ("train plain",)
    place = f"{Path(begun.run.out) / 'plain'}"
    words = jobs["train on-seed0"].words()
    assert words[words.index("--student.begin") + 1] == place


def test_a_run_that_needs_itself_is_refused(recipes):
    self_taught = RunTeacher(target="shapes", path="runs/with", taps=(("inner", "encoder.2"),))
    recipes["f.py:with"] = replace(recipes["f.py:with"], teachers=(self_taught,))
    with pytest.raises(UserError, match="with -> with"):
        plan(request(recipes, "f.py:with"))


@pytest.mark.parametrize("words", [("f.py:plain", "f.py:plain"), ("f.py:plain", "g.py:plain")])
def test_runs_of_one_name_are_refused(recipes, words):
    recipes["g.py:plain"] = recipes["f.py:plain"]
    with pytest.raises(UserError, match="one name"):
        plan(request(recipes, *words))


def test_pictures_that_are_missing_are_packed_from_the_source_first_or_refused(recipes, tmp_path):
    missing = tmp_path / "none"
    for word, recipe in recipes.items():
        recipes[word] = replace(recipe, data=replace(recipe.data, shards=str(missing)))
    with pytest.raises(UserError, match=r"stillroom shards(.|\n)*--source"):
        plan(request(recipes))
    jobs, _ = named(recipes, source="folders:'a b',c --size 32 32")
    words = ["shards", "folders:a b,c", "--size", "32", "32", "--out", str(missing)]
    assert jobs[f"pack {missing}"].words() == words
    assert jobs["train teacher"].needs == jobs["train plain-seed0"].needs == (f"pack {missing}",)
    assert f"pack {missing}" in jobs["cache with"].needs


def test_what_lies_on_disk_says_what_is_done_and_how_to_go_on(recipes, tmp_path):
    plain = recipes["f.py:plain"]
    words = ("f.py:plain",)
    jobs, _ = named(recipes, *words, seeds=(3,))
    training, evaluation = jobs["train plain-seed3"], jobs["evaluate plain-seed3"]
    assert not training.is_done()
    run = train(replace(plain, seed=3, run=replace(plain.run, name="plain-seed3")))
    assert training.is_done() and not evaluation.is_done()
    about = read_json(run / "student.json")
    for digest, is_done in (("0" * 64, False), (about["weights_sha256"], True)):
        write_json(run / "evaluation.json", {"weights_sha256": digest})
        assert evaluation.is_done() == is_done

    for field, value in (("batch", 4), ("epochs", 2)):
        other = {**recipes, "f.py:plain": replace(plain, **{field: value})}
        with pytest.raises(UserError, match=rf"another recipe(.|\n)*{field}(.|\n)*--run\.out"):
            plan(request(other, *words, seeds=(3,)))

    (run / "receipt.json").unlink()
    training = named(recipes, *words, seeds=(3,))[0]["train plain-seed3"]
    assert not training.is_done() and training.words()[-1] == "--run.resume"
    for folder in (run / "checkpoints").iterdir():
        folder.rename(tmp_path / folder.name)
    assert named(recipes, *words, seeds=(3,))[0][training.name].words()[-1] == "--run.overwrite"


def test_a_cache_is_done_when_it_is_complete_and_of_these_teachers(tiny_recipe, tmp_path):
    recipes = {"tiny": tiny_recipe}
    assert named(recipes)[0]["cache tiny"].is_done()
    empty = replace(tiny_recipe, run=replace(tiny_recipe.run, cache=str(tmp_path)))
    assert not named({"tiny": empty})[0]["cache tiny"].is_done()
    mirrored = replace(tiny_recipe, augment=replace(tiny_recipe.augment, mirror=True))
    assert named({"tiny": mirrored})[0]["cache tiny"].is_done()
