"""A finished run goes on for more epochs, with nothing else changed, and says what that means."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stillroom.training.loop as loop
import stillroom.training.validate as validate
from stillroom.errors import FailureError, UserError
from stillroom.jsonfile import read_json
from stillroom.losses import CrossEntropy
from stillroom.recipe import Recipe
from stillroom.recipe_optimizer import Constant, Cosine
from stillroom.training.log import read_metrics

pytestmark = pytest.mark.usefixtures("undrawn")


def plain(recipe: Recipe, **changes: object) -> Recipe:
    """Without teacher or schedule, three steps an epoch."""
    changes = {"epochs": 1, "schedule": Constant(), **changes}
    return replace(recipe, terms=(CrossEntropy(),), teachers=(), codec={}, **changes)


def on(recipe: Recipe, **run: object) -> Recipe:
    return replace(recipe, run=replace(recipe.run, resume=True, **run))


def epochs_of(run: Path) -> int:
    return read_json(run / "recipe.json")["recipe"]["epochs"]


def require_equal(one: Path, two: Path, last: int) -> None:
    for name in ("model", "optimizer"):
        path = f"checkpoints/step-{last:06d}/{name}.safetensors"
        found, wanted = load_file(one / path), load_file(two / path)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("freeze", [(), ("encoder",)], ids=["free", "frozen for good at first"])
def test_a_run_that_got_more_epochs_is_one_that_had_them_from_the_start(tiny_recipe, freeze):
    recipe = plain(tiny_recipe, freeze=freeze, freeze_epochs=1)
    straight = replace(recipe, epochs=2, run=replace(recipe.run, name="straight"))
    run = loop.train(recipe)
    assert loop.train(on(recipe, additional_epochs=1)) == run
    require_equal(run, loop.train(straight), 6)
    assert epochs_of(run) == 2
    assert read_json(run / "receipt.json")["steps"] == 6
    assert [line["step"] for line in read_metrics(run) if line["kind"] == "val"] == [3, 6]


def test_what_becomes_of_the_learning_rate_is_said(tiny_recipe, capsys):
    recipe = plain(tiny_recipe, schedule=Cosine(warmup=0.0, final=0.01))
    loop.train(recipe)
    loop.train(on(recipe, additional_epochs=1))
    said = capsys.readouterr().out
    assert (
        "2 epochs instead of 1. Learning rate: 4e-05 in the last step, 0.00202 in the next" in said
    )
    assert "Cosine goes on as in a run of 2 epochs, not where it ended" in said
    constant = replace(plain(tiny_recipe), run=replace(tiny_recipe.run, name="constant"))
    loop.train(constant)
    loop.train(on(constant, additional_epochs=1))
    assert "Constant does not follow the length of the run" in capsys.readouterr().out


def test_additional_epochs_are_added_once_to_a_finished_run(tiny_recipe, monkeypatch, capsys):
    recipe = plain(tiny_recipe)
    run = loop.train(recipe)
    more = on(recipe, additional_epochs=2)
    evaluate = loop.evaluate

    def killed(*_: object) -> None:
        raise FailureError("killed")

    monkeypatch.setattr(loop, "evaluate", killed)
    with pytest.raises(FailureError, match="killed"):
        loop.train(more)
    assert epochs_of(run) == 3
    monkeypatch.setattr(loop, "evaluate", evaluate)
    loop.train(more)  # the same command again
    assert (
        "is not finished: it goes on to its 3 epochs, and none is added" in capsys.readouterr().out
    )
    assert (epochs_of(run), read_json(run / "receipt.json")["steps"]) == (3, 9)
    loop.train(more)
    assert (epochs_of(run), read_json(run / "receipt.json")["steps"]) == (5, 15)
    straight = replace(recipe, epochs=5, run=replace(recipe.run, name="straight"))
    require_equal(run, loop.train(straight), 15)


def test_a_run_that_ended_early_goes_on_to_its_next_evaluation(tiny_recipe, monkeypatch):
    scores = iter([0.5, 0.4, 0.6, 0.5])
    monkeypatch.setattr(
        validate, "validate", lambda *_, **__: {"miou": next(scores), "terms": [0.0]}
    )
    recipe = plain(tiny_recipe, early_stopping=1, epochs=9)
    run = loop.train(recipe)
    assert read_json(run / "receipt.json")["steps"] == 6
    loop.train(on(recipe, additional_epochs=1))
    found = read_json(run / "receipt.json")
    assert (found["steps"], found["epochs"], found["ended_early"]) == (12, 10, True)
    assert read_json(run / "student.json")["step"] == 9


def test_other_epochs_or_any_other_change_are_refused_with_both_sides(tiny_recipe):
    recipe = plain(tiny_recipe, epochs=2)
    loop.train(recipe)
    for epochs in (1, 3):
        with pytest.raises(UserError, match="another recipe") as refused:
            loop.train(on(replace(recipe, epochs=epochs)))
        assert (refused.value.found, refused.value.wanted) == (f"epochs = {epochs}", "epochs = 2")
    with pytest.raises(UserError, match="another recipe") as refused:
        loop.train(replace(on(recipe, additional_epochs=1), seed=1))
    assert refused.value.found == "seed = 1"


def test_additional_epochs_of_no_run_are_refused(tiny_recipe):
    recipe = plain(tiny_recipe)
    with pytest.raises(UserError, match=r"--run\.resume too"):
        loop.train(replace(recipe, run=replace(recipe.run, additional_epochs=1)))
    with pytest.raises(UserError, match="there is no run"):
        loop.train(on(recipe, additional_epochs=1))
