"""What follows from the evaluations so far: an early end, a lower rate, less distillation; and a
resume decides as the straight run did.
"""

import csv
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import stillroom.training.loop as loop
import stillroom.training.validate as validate
from stillroom.errors import UserError
from stillroom.jsonfile import read_json
from stillroom.losses import CrossEntropy, LogitMSE
from stillroom.recipe import Recipe
from stillroom.recipe_optimizer import Constant, Plateau
from stillroom.training.evaluations import (
    Evaluation,
    balance,
    best_score,
    ends_early,
    evaluation_of,
    num_without_improvement,
)
from stillroom.training.log import read_metrics

pytestmark = pytest.mark.usefixtures("undrawn")


def evaluated(*scores: float | None, ratios: Sequence[float | None] = ()) -> list[Evaluation]:
    pairs = zip(scores, ratios or scores, strict=True)
    return [{"step": i, "score": score, "ratio": ratio} for i, (score, ratio) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("scores", "waited", "best"),
    [
        ((), 0, -1.0),
        ((None, None), 0, -1.0),
        ((0.5,), 0, 0.5),
        ((0.5, 0.5, 0.4), 2, 0.5),
        ((0.5, 0.4, 0.6), 0, 0.6),
    ],
)
def test_an_equal_score_is_no_improvement(tiny_recipe, scores, waited, best):
    found = evaluated(*scores)
    assert (num_without_improvement(found), best_score(found)) == (waited, best)
    for limit in (1, 2, 3):
        assert ends_early(replace(tiny_recipe, early_stopping=limit), found) is (waited >= limit)
    assert not ends_early(tiny_recipe, found)


def test_an_evaluation_keeps_the_score_and_how_far_from_the_teacher_it_is(tiny_recipe):
    found = {"miou": 0.6, "teacher_miou": 0.5, "agreement": 0.9}
    assert evaluation_of(tiny_recipe, 7, found) == {"step": 7, "score": 0.6, "ratio": 1.2}
    alone = {"step": 7, "score": 0.9, "ratio": None}
    assert evaluation_of(tiny_recipe, 7, {"agreement": 0.9}) == alone
    assert evaluation_of(tiny_recipe, 7, {}) == {"step": 7, "score": None, "ratio": None}
    for change in ({"early_stopping": 3}, {"schedule": Plateau()}, {"distill_fade": 30.0}):
        recipe = replace(tiny_recipe, **change)
        with pytest.raises(UserError, match="no score that this recipe needs"):
            evaluation_of(recipe, 7, {"agreement": 0.9} if "distill_fade" in change else {})


def test_the_balance_is_one_number_and_fades_as_the_student_passes_its_teacher(tiny_recipe):
    recipe = replace(tiny_recipe, distill_weight=0.7)
    passed = evaluated(0.5, ratios=[1.01])
    assert balance(tiny_recipe, passed) == (1.0, 1.0)
    assert balance(recipe, passed) == pytest.approx((0.7, 0.3))
    recipe = replace(recipe, distill_fade=30.0)
    for ratio in (0.4, 1.0, None):
        assert balance(recipe, evaluated(0.5, ratios=[ratio])) == pytest.approx((0.7, 0.3))
    faded = (0.7 * math.exp(-0.3), 0.3 + 0.7 * (1 - math.exp(-0.6)))
    assert balance(recipe, passed) == pytest.approx(faded)
    back = evaluated(0.5, 0.5, ratios=[1.03, 0.9])
    assert balance(recipe, back) == pytest.approx((0.7, 0.3))
    for_good = evaluated(0.5, 0.5, 0.5, ratios=[1.031, 0.9, 1.0])
    assert balance(recipe, for_good) == (0.0, 1.0)


def test_the_balance_multiplies_the_weights_of_distilled_and_of_other_terms(tiny_recipe):
    terms = (CrossEntropy(weight=0.5), LogitMSE(target="shapes", weight=2.0))
    recipe = replace(tiny_recipe, terms=terms)
    assert recipe.term_weights() == (0.5, 2.0)
    assert replace(recipe, distill_weight=0.25).term_weights() == (0.375, 0.5)
    assert recipe.term_weights((0.0, 1.0)) == (0.5, 0.0)


def scripted(monkeypatch, recipe: Recipe, scores: Sequence[tuple[float, float]]) -> None:
    """Let the evaluations of a run have these scores of student and teacher."""
    script = iter(scores)

    def validated(*_: object, **__: object) -> dict[str, Any]:
        student, teacher = next(script)
        return {"miou": student, "teacher_miou": teacher, "terms": [0.0] * len(recipe.terms)}

    monkeypatch.setattr(validate, "validate", validated)


def resumed(run: Path, recipe: Recipe, step: int, name: str) -> Path:
    """Copy a run as it was killed after a checkpoint, and go on with it."""
    copy = run.parent / name
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    (copy / "receipt.json").unlink()
    return loop.train(replace(recipe, run=replace(recipe.run, name=name, resume=True)))


def require_equal(one: Path, two: Path, last: int) -> None:
    """The last checkpoints of two runs are equal to the last bit, and so is what was logged."""
    for name in ("model", "optimizer"):
        path = Path("checkpoints") / f"step-{last:06d}" / f"{name}.safetensors"
        found, wanted = load_file(one / path), load_file(two / path)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    for a, b in zip(read_metrics(one), read_metrics(two), strict=True):
        assert {**a, "rows_per_s": 0, "waiting": 0} == {**b, "rows_per_s": 0, "waiting": 0}


def figure(run: Path, kind: str, name: str) -> list[Any]:
    return [line[name] for line in read_metrics(run) if line["kind"] == kind]


def longer(recipe: Recipe, **changes: Any) -> Recipe:
    """One step an epoch, an evaluation after each."""
    recipe = replace(recipe, batch=24, micro_batch=12, epochs=6, schedule=Constant())
    return replace(recipe, run=replace(recipe.run, keep=99), **changes)


def test_a_run_ends_early_and_says_so_and_a_resume_says_that_it_was_finished(
    tiny_recipe, monkeypatch, capsys
):
    recipe = longer(tiny_recipe, early_stopping=2)
    scripted(monkeypatch, recipe, [(s, 1.0) for s in (0.3, 0.5, 0.4, 0.5)])
    run = loop.train(recipe)
    said = capsys.readouterr().out
    assert "ended early, at step 4 of 6: 2 evaluations, none better" in said
    assert said.splitlines()[-1] == f"done: {run}, best 0.5000"
    receipt = read_json(run / "receipt.json")
    assert (receipt["steps"], receipt["epochs"], receipt["ended_early"]) == (4, 6, True)
    assert read_json(run / "student.json")["step"] == 2
    before = {p: p.read_bytes() for p in run.rglob("*") if p.suffix in (".json", ".safetensors")}
    assert loop.train(replace(recipe, run=replace(recipe.run, resume=True))) == run
    assert f"{run} was finished" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in before}


def test_a_run_killed_just_after_its_early_end_is_finished_by_a_resume(tiny_recipe, monkeypatch):
    recipe = longer(tiny_recipe, early_stopping=1)
    scripted(monkeypatch, recipe, [(0.5, 1.0), (0.5, 1.0)])
    run = loop.train(recipe)
    (run / "receipt.json").unlink()
    loop.train(replace(recipe, run=replace(recipe.run, resume=True)))  # no evaluation is left
    assert read_json(run / "receipt.json")["steps"] == 2


def test_a_rate_that_fell_on_a_plateau_is_that_after_a_resume(tiny_recipe, monkeypatch):
    recipe = longer(tiny_recipe, schedule=Plateau(patience=1))
    scores = [(s, 1.0) for s in (0.5, 0.4, 0.5, 0.6, 0.1, 0.2)]
    scripted(monkeypatch, recipe, scores)
    run = loop.train(recipe)
    lr = recipe.optimizer.lr
    assert figure(run, "train", "lr") == pytest.approx([lr, lr, lr, lr / 2, lr / 2, lr / 2])
    assert len(read_json(run / "checkpoints" / "step-000006" / "state.json")["evaluations"]) == 6
    scripted(monkeypatch, recipe, scores[3:])
    require_equal(resumed(run, recipe, 3, "again"), run, 6)


def test_distilled_terms_fade_in_the_loss_and_a_resume_knows_it(tiny_recipe, monkeypatch):
    recipe = longer(tiny_recipe, distill_weight=0.6, distill_fade=20.0)
    scores = [(0.4, 0.5), (0.505, 0.5), (0.49, 0.5), (0.6, 0.5), (0.4, 0.5), (0.4, 0.5)]
    scripted(monkeypatch, recipe, scores)
    run = loop.train(recipe)
    lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    factors = [(0.6, 0.4), (0.6, 0.4), None, (0.6, 0.4), (0.0, 1.0), (0.0, 1.0)]
    factors[2] = (0.6 * math.exp(-0.2), 0.4 + 0.6 * (1 - math.exp(-0.4)))
    names = [name for name in lines[0] if name.startswith("term_")]
    for line, (distilled, others) in zip(lines, factors, strict=True):
        weights = [t.weight * (distilled if t.needs.target else others) for t in recipe.terms]
        wanted = sum(w * line[name] for w, name in zip(weights, names, strict=True))
        assert line["loss"] == pytest.approx(wanted)
    scripted(monkeypatch, recipe, scores[4:])
    require_equal(resumed(run, recipe, 4, "again"), run, 6)


def test_a_loss_with_one_number_moves_as_one_with_such_weights(tiny_recipe):
    short = longer(tiny_recipe, epochs=1)
    split = [0.25 if t.needs.target else 0.75 for t in short.terms]
    terms = tuple(replace(t, weight=t.weight * s) for t, s in zip(short.terms, split, strict=True))
    one = loop.train(replace(short, distill_weight=0.25, run=replace(short.run, name="one")))
    two = loop.train(replace(short, terms=terms, run=replace(short.run, name="two")))
    require_equal(one, two, 1)


def test_how_often_is_evaluated_may_not_change_where_training_follows_the_scores(tiny_recipe):
    free = longer(tiny_recipe, epochs=2)
    loop.train(free)
    often = replace(free.run, evaluate_every=2, resume=True)
    loop.train(replace(free, run=often))
    bound = longer(tiny_recipe, epochs=2, early_stopping=2)
    bound = replace(bound, run=replace(bound.run, name="bound"))
    loop.train(bound)
    with pytest.raises(UserError, match="another recipe") as refused:
        loop.train(replace(bound, run=replace(often, name="bound")))
    assert refused.value.found == "evaluate_every = 2"


@pytest.mark.parametrize(
    "change", [{"early_stopping": 2}, {"schedule": Plateau()}, {"distill_fade": 30.0}]
)
def test_without_a_validation_split_what_follows_scores_is_refused(
    make_tiny, tiny_recipe, tmp_path, change
):
    make_tiny.make_pictures(tmp_path, train=8, val=0)
    data = replace(tiny_recipe.data, shards=str(tmp_path / "shards"))
    with pytest.raises(UserError, match="follows the scores of evaluations, and there are none"):
        loop.train(replace(tiny_recipe, data=data, **change))


def test_the_history_has_a_line_for_each_evaluation(tiny_recipe, tmp_path):
    run = loop.train(longer(tiny_recipe, epochs=3))
    with (run / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["epoch"]) for row in rows] == [("1", "0"), ("2", "1"), ("3", "2")]
    assert [float(row["val_miou"]) for row in rows] == figure(run, "val", "miou")
    assert [float(row["loss"]) for row in rows] == figure(run, "train", "loss")
    assert [float(row["lr"]) for row in rows] == figure(run, "train", "lr")
    assert {"term_ce", "val_term_ce", "val_agreement", "val_teacher_miou"} <= rows[0].keys()
