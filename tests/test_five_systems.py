"""`benchmarks/five_systems.py`: what it says to each recipe is what the recipe understands."""

import argparse
from pathlib import Path
from types import ModuleType

import pytest

from stillroom.cli import recipe_from

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(load_module, monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return load_module("../benchmarks/five_systems.py")


def options(world: Path, system: str, **changes: object) -> argparse.Namespace:
    found = {
        "system": system,
        "shards": world / "shards",
        "unlabelled": None,
        "out": world,
        "batch": 4,
        "label_share": 0.5,
        "views": 2,
        "device": "cpu",
        "teachers": "--run.recorded-teachers",
        "encoder": "None",
        "unet": "None",
    }
    return argparse.Namespace(**found | changes)


@pytest.mark.parametrize("system", ["S0", "S1", "S2", "S3"])
def test_flags_are_those_of_the_recipes_and_steps_are_equal(benchmark, tiny_world, system):
    named, arguments = benchmark.SYSTEMS[system], options(tiny_world, system)
    assert benchmark._is_there(named)
    steps = set()
    for label, (name, flags) in named.students.items():
        words = [name, *benchmark._flags(arguments, label, name, flags)]
        words += benchmark._length(arguments, label, name, 61)
        recipe = recipe_from([*map(str, words), "--run.recorded-teachers"])
        assert recipe.name == name and recipe.data.label_share == 0.5
        assert recipe.early_stopping is None and recipe.views.count in (1, 2)
        steps.add(recipe.epochs * (24 // recipe.batch))
    assert steps == {60}  # whole epochs of 24 training pictures


def test_a_student_without_labels_is_as_long_on_its_own_pictures(benchmark, tiny_world, make_tiny):
    more = tiny_world.parent / "more"
    more.mkdir()
    make_tiny.make_pictures(more, train=48)
    arguments = options(tiny_world, "S2", unlabelled=more / "shards")
    students = benchmark.SYSTEMS["S2"].students
    words = [benchmark._length(arguments, n, r, 48) for n, (r, _) in students.items()]
    assert [w[1] for w in words] == [8, 4]
    shards = benchmark._flags(arguments, "soft answers", "soft-binary", "")
    assert more / "shards" in shards


def test_runs_of_other_options_are_refused(benchmark, tiny_world, tmp_path):
    arguments = options(tiny_world, "S2", steps=10, teacher_steps=10)
    benchmark._claim(tmp_path, arguments)
    benchmark._claim(tmp_path, arguments)
    arguments.steps = 20
    with pytest.raises(ValueError, match="other options"):
        benchmark._claim(tmp_path, arguments)
