"""The flags of a recipe are the fields of what stands in it."""

import re
from dataclasses import replace

import pytest

from stillroom.cli import named_recipe, recipe_from
from stillroom.errors import UserError
from stillroom.pictures.views import Views
from stillroom.recipe import Recipe
from stillroom.recipes import RECIPES

TINY = """
--name --body --distill-weight --distill-fade --distill-end
--freeze --freeze-epochs --unfreeze-every --freeze-lr --ema --early-stopping
--batch --micro-batch --epochs --channels-last --compile --seed --on-damage --precision
--gate --gate-floor
--data.shards --data.label-share --data.size --data.regions --data.window
--teachers.0.target --teachers.0.path --teachers.0.code --teachers.0.taps
--views.count --views.scale --views.aspect --views.mirror --views.seed
--codec.shapes --codec.inner
--student.width --student.depth --student.classes --student.mean --student.std --student.begin
--terms.0.weight --terms.0.output --terms.0.relabel --terms.0.align --terms.0.class-weights
--terms.1.weight --terms.1.output --terms.1.relabel --terms.1.align --terms.1.smooth --terms.1.only
--terms.2.target --terms.2.weight --terms.2.align --terms.2.output
--terms.2.class-weights --terms.2.class-of
--terms.2.temperature.start --terms.2.temperature.end --terms.2.temperature.kind
--terms.3.target --terms.3.weight --terms.3.align --terms.3.output
--terms.4.target --terms.4.weight --terms.4.align --terms.4.tap --terms.4.hidden
--terms.5.target --terms.5.weight --terms.5.align --terms.5.tap --terms.5.hidden --terms.5.flatten
--augment.photometric --augment.hsv --augment.gamma --augment.blur --augment.noise --augment.jpeg
--augment.degraded --augment.mirror
--optimizer.lr --optimizer.weight-decay --optimizer.clip
--optimizer.nominal-batch --optimizer.lr-limits
--schedule.warmup --schedule.final
--run.out --run.name --run.cache --run.local --run.local-gb --run.recorded-teachers --run.resume
--run.overwrite
--run.device --run.workers --run.quiet --run.tracker --run.log-every --run.evaluate-every --run.keep
--run.timeout-s --run.shard-limit-gb --run.preflight --run.additional-epochs
"""


def help_of(name: str, capsys) -> str:
    with pytest.raises(SystemExit) as left:
        recipe_from([name, "--help"])
    printed = capsys.readouterr()
    assert left.value.code == 0 and printed.err == ""
    return printed.out


def flags_of(text: str) -> dict[str, str]:
    """Each flag with what stands beside and below it; text is indented, flags are not."""
    parts = re.split(r"^..(--[a-z][a-z0-9.-]+)", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_flags_of_tiny_are_these(capsys):
    found = flags_of(help_of("tiny", capsys))
    assert list(found) == TINY.split()


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_of_every_recipe_is_a_flag_with_a_sentence(name, capsys):
    for flag, beside in flags_of(help_of(name, capsys)).items():
        assert "{fixed}" not in beside
        kind = r"(, --\S+)?( |\||STR|INT|FLOAT|\.\.\.|\[|\]|\{[^}]*\})*"
        sentence = re.sub(kind, "", " ".join(beside.split()), count=1)
        assert sentence[:8] != "(default" or flag.startswith("--codec."), f"{flag}: {sentence}"


def test_flags_reach_inside_terms_teachers_students_and_codecs():
    words = ["tiny", "--terms.4.weight", "0.7", "--terms.2.temperature.start", "5"]
    words += [
        "--teachers.0.path",
        "runs/x",
        "--run.recorded-teachers",
        "--student.width",
        "9",
        "--codec.inner",
        "float32",
    ]
    recipe = recipe_from(words)
    assert type(recipe) is Recipe
    assert (recipe.terms[4].weight, recipe.terms[2].temperature.start) == (0.7, 5.0)
    assert (recipe.teachers[0].path, recipe.student.width) == ("runs/x", 9)
    assert recipe.codec == {"shapes": "float16", "inner": "float32"}


def test_weights_strides_and_grids_are_flags():
    words = "tiny --terms.0.class-weights balanced --terms.2.class-weights 1 .5 2 4"
    words += " --terms.1.relabel 0 1 1 255 --terms.4.align teacher --run.recorded-teachers"
    recipe = recipe_from(
        [*words.split(), "--teachers.0.taps", "a", "encoder.1", "8", "b", "decoder.0"]
    )
    assert recipe.terms[0].class_weights == "balanced"
    assert recipe.terms[2].class_weights == (1.0, 0.5, 2.0, 4.0)
    assert recipe.terms[1].relabel == (0, 1, 1, 255) and recipe.terms[4].align == "teacher"
    assert recipe.teachers[0].taps == (("a", "encoder.1", 8), ("b", "decoder.0"))


def test_views_size_and_light_are_flags():
    words = "tiny --views.count 4 --views.scale .4 2 --views.mirror 0 --data.size 48 64"
    words += " --augment.hsv .1 .7 .3 --augment.jpeg 30"
    recipe = recipe_from(words.split())
    assert recipe.views == Views(count=4, scale=(0.4, 2.0), mirror=0.0)
    assert recipe.data.size == (48, 64)
    assert recipe.augment == replace(recipe.augment, hsv=(0.1, 0.7, 0.3), jpeg=30)
    with pytest.raises(UserError, match=r"no such --views\.scale"):
        recipe_from(["tiny", "--views.scale", "2", ".4"])


@pytest.mark.parametrize("name", RECIPES)
def test_no_flags_leave_a_recipe_as_it_is(name):
    assert recipe_from([name]) == named_recipe(name)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("tinny", "no recipe 'tinny'"),
        ("nowhere.py:recipe", "no file nowhere.py"),
        (f"{__file__}:nothing", "no function nothing"),
        (f"{__file__}:gives_five", "gives no recipe"),
    ],
)
def test_what_names_no_recipe_is_refused(name, what):
    with pytest.raises(UserError, match=what):
        recipe_from([name])


def gives_five() -> int:
    return 5
