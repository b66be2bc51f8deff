"""Stage 2 does what a trainer of forty lines of plain torch does that knows nothing of its loop.

What both use are the rows' order, the terms and the network, each tested by itself.
"""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

import stillroom.training.loop as loop
import stillroom.training.setup as setup
import stillroom.training.step as step_sums
import stillroom.training.validate as validate
from stillroom.cache import find_caches
from stillroom.hashing import keyed_hash
from stillroom.jsonfile import read_json
from stillroom.losses import CrossEntropy, Dice
from stillroom.pictures.augment import mirror, photometric
from stillroom.pictures.dataset import open_pictures
from stillroom.pictures.loader import inside_array
from stillroom.recipe import Augment, Recipe
from stillroom.recipe_optimizer import AdamW, Cosine
from stillroom.students.distiller import Distiller, build_distiller
from stillroom.training.log import read_metrics
from stillroom.training.order import Order
from stillroom.training.setup import prepare
from stillroom.types import Batch

pytestmark = pytest.mark.usefixtures("undrawn")


def distilled(recipe: Recipe) -> Recipe:
    """Everything that the loop could leave out changes its steps: labels of half of the pictures,
    light, decay, clipping, a temperature, a rate that rises and falls.
    """
    return replace(
        recipe,
        data=replace(recipe.data, label_share=0.5),
        augment=Augment(photometric=0.3),
        optimizer=AdamW(lr=5e-3, weight_decay=0.5, clip=0.05),
        schedule=Cosine(warmup=0.25, final=0.2),
        seed=3,
        epochs=4,
        run=replace(recipe.run, evaluate_every=3, keep=9),
    )


def plain(recipe: Recipe) -> Recipe:
    """The same from labels alone, with mirrored pictures and a line of the log every other step."""
    recipe, terms = distilled(recipe), (CrossEntropy(weight=0.7), Dice(weight=0.2))
    changes = {"terms": terms, "teachers": (), "codec": {}, "run": replace(recipe.run, log_every=2)}
    return replace(recipe, augment=Augment(photometric=0.3, mirror=True), **changes)


def rows_of(recipe: Recipe, split: str, share: float) -> list[dict[str, Any]]:
    """A split's rows: void where the label is not used, left out where there is nothing else."""
    pictures, targets, found = open_pictures(Path(recipe.data.shards)), recipe.wanted_targets(), []
    for shard in pictures.shard_ids(split):
        opened = pictures.open(shard)
        reader = find_caches(Path(recipe.run.cache))[0].reader(shard) if targets else None
        for i, key in enumerate(opened.keys):
            picture, is_used = opened.read(i), keyed_hash("label", key) < share * 2**64
            row: dict[str, Any] = {"key": key, "image": picture.image}
            row["inside"] = inside_array(picture)
            row["mask"] = picture.mask if is_used else np.full_like(picture.mask, 255)
            if reader is not None:
                stored = reader.read(reader.index(key))
                row |= {name: stored[f"{name}.value"].astype(np.float32) for name in targets}
            if is_used or targets:
                found.append(row)
    return found


def lit(row: dict[str, Any], augment: Augment, seed: int) -> dict[str, Any]:
    """A row as a pass of that seed sees it."""
    draw = np.random.Generator(np.random.PCG64(seed))
    if augment.mirror and draw.random() < 0.5:
        row = row | {name: mirror(row[name]) for name in ("image", "mask", "inside")}
    return row | {"image": photometric(row["image"], augment.photometric, draw)}


def batch_of(rows: list[dict[str, Any]], targets: tuple[str, ...]) -> Batch:
    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([row[name] for row in rows]))

    return Batch(
        keys=tuple(row["key"] for row in rows),
        image=stack("image").permute(0, 3, 1, 2).float() / 255,
        mask=stack("mask").long(),
        inside=stack("inside"),
        targets={name: stack(name) for name in targets},
    )


def reference(recipe: Recipe) -> tuple[Distiller, np.ndarray, list[float]]:
    """Train in plain torch; return the network, each step's (total, count) of every term, and each
    step's rate.
    """
    model, config, sums, rates = prepare(recipe).distiller.train(), recipe.optimizer, [], []
    rows = rows_of(recipe, "train", recipe.data.label_share)
    order = Order(rows=len(rows), seed=recipe.seed)
    wide, narrow = (
        [p for p in model.parameters() if (p.ndim > 1) == is_wide] for is_wide in (1, 0)
    )
    groups = [
        {"params": wide, "weight_decay": config.weight_decay},
        {"params": narrow, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    per_epoch = 24 // recipe.batch  # 24 pictures, however many of them are labelled
    steps = recipe.epochs * per_epoch
    schedule = recipe.schedule
    warm = schedule.warmup * steps
    for step in range(steps):
        falling = (1 + math.cos(math.pi * (step - warm) / (steps - 1 - warm))) / 2
        share = (
            (step + 1) / warm if step < warm else schedule.final + (1 - schedule.final) * falling
        )
        for group in optimizer.param_groups:
            group["lr"] = config.lr * share
        drawn = [order.at(step * recipe.batch + i) for i in range(recipe.batch)]
        seen = [
            lit(rows[i], recipe.augment, keyed_hash("augment", recipe.seed, n, rows[i]["key"]))
            for n, i in drawn
        ]
        batches = [
            batch_of(seen[i : i + recipe.micro_batch], recipe.wanted_targets())
            for i in range(0, recipe.batch, recipe.micro_batch)
        ]
        outputs = []
        for micro, batch in enumerate(batches):
            torch.manual_seed(keyed_hash("forward", recipe.seed, step, micro) >> 1)
            outputs.append(model(batch.image))
        loss, sums_of_step = torch.zeros(()), []
        for term in recipe.terms:
            progress = (step // per_epoch) / (recipe.epochs - 1)
            pairs = zip(outputs, batches, strict=True)
            total = sum(term.total(o, b, progress) for o, b in pairs)
            count = sum(float(term.count(b)) for b in batches)
            loss = loss + (term.weight * total / count if count else 0.0)
            sums_of_step.append((float(total.detach()), count))
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip) > config.clip
        optimizer.step()
        optimizer.zero_grad()
        sums.append(sums_of_step)
        rates.append(config.lr * share)
    return model, np.array(sums), rates


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def with_dropout(*words: Any) -> Distiller:
    """The distiller of a recipe, which draws in each forward pass."""
    distiller = build_distiller(*words)
    distiller.student.encoder[1].append(nn.Dropout(0.2))
    return distiller


@pytest.mark.parametrize(
    ("make", "logged"), [(distilled, [*range(1, 13)]), (plain, [2, 4, 6, 8, 9, 10, 12])]
)
def test_a_run_ends_where_the_plain_trainer_ends(
    tiny_recipe, monkeypatch, make: Callable[[Recipe], Recipe], logged: list[int]
):
    monkeypatch.setattr(setup, "build_distiller", with_dropout)
    recipe = make(tiny_recipe)
    start = flat(prepare(recipe).distiller.state_dict())
    model, sums, rates = reference(recipe)
    run = loop.train(recipe)
    found = flat(load_file(run / "checkpoints" / "step-000012" / "model.safetensors"))
    wanted = flat(model.state_dict())
    assert (found - wanted).norm() < 1e-3 * (wanted - start).norm()
    lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == logged
    assert [line["epoch"] for line in lines] == [(step - 1) // 3 for step in logged]
    assert [line["lr"] for line in lines] == pytest.approx([rates[step - 1] for step in logged])
    weights = [term.weight for term in recipe.terms]
    for line, before in zip(lines, [0, *logged[:-1]], strict=True):
        total, count = sums[before : line["step"]].sum(0).T
        means = total / np.maximum(count, 1e-9)
        assert line["loss"] == pytest.approx(means @ weights, rel=1e-4)


def test_an_evaluation_is_that_of_the_weights_of_its_step_at_the_end_of_all_schedules(tiny_recipe):
    recipe = distilled(tiny_recipe)
    run = loop.train(recipe)
    lines = [line for line in read_metrics(run) if line["kind"] == "val"]
    assert [(line["step"], line["epoch"]) for line in lines] == [(9, 2), (12, 3)]
    model, targets = (
        prepare(replace(recipe, name="other")).distiller.eval(),
        recipe.wanted_targets(),
    )
    batch = batch_of(rows_of(recipe, "val", 1.0), targets)
    for line in lines:
        folder = run / "checkpoints" / f"step-{line['step']:06d}"
        model.load_state_dict(load_file(folder / "model.safetensors"))
        with torch.no_grad():
            outputs = model(batch.image)
        for term in recipe.terms:
            wanted = float(term.total(outputs, batch, 1.0) / term.count(batch))
            assert line[f"term_{term.label}"] == pytest.approx(wanted, rel=1e-4)
        found, truth = outputs["logits"].argmax(1), batch.mask
        known = (truth != 255) & batch.inside
        ious = [
            float(
                (known & (found == k) & (truth == k)).sum()
                / (known & ((found == k) | (truth == k))).sum()
            )
            for k in range(4)
        ]
        assert line["iou"] == pytest.approx(ious)
        assert line["miou"] == pytest.approx(np.mean(ious))


def test_best_is_the_highest_score_whenever_it_was_and_however_the_run_was_cut(
    tiny_recipe, monkeypatch
):
    scores = {3: 0.2, 6: 0.9, 9: 0.4, 12: 0.7}
    steps = iter([*scores, 9, 12])

    def scripted(*_: object, **__: object) -> dict[str, Any]:
        return {"miou": scores[next(steps)], "terms": [0.0] * len(tiny_recipe.terms)}

    monkeypatch.setattr(validate, "validate", scripted)
    recipe = replace(tiny_recipe, epochs=4, run=replace(tiny_recipe.run, keep=9))
    run = loop.train(recipe)

    def check() -> None:
        about = read_json(run / "student.json")
        assert (about["step"], about["score"]["miou"]) == (6, 0.9)
        stored = load_file(run / "checkpoints" / "step-000006" / "model.safetensors")
        for name, tensor in load_file(run / "student.safetensors").items():
            assert torch.equal(tensor, stored[f"student.{name}"])

    check()
    for step in (9, 12):
        (run / "checkpoints" / f"step-{step:06d}" / "state.json").unlink()
    loop.train(replace(recipe, run=replace(recipe.run, resume=True)))
    check()


def test_only_the_last_micro_batch_of_a_step_is_synchronised(tiny_recipe, monkeypatch):
    seen: list[str] = []
    totals = step_sums.term_totals

    @contextmanager
    def no_sync(self: Accelerator, model: nn.Module):
        seen.append("alone")
        yield
        seen.append("done")

    monkeypatch.setattr(Accelerator, "no_sync", no_sync)
    monkeypatch.setattr(
        step_sums, "term_totals", lambda *a: (seen.append("forward"), totals(*a))[1]
    )
    monkeypatch.setattr(loop.RunningBuffers, "finish", lambda *_: seen.append("step"))
    loop.train(replace(tiny_recipe, micro_batch=2, epochs=1))
    assert seen == [*["alone", "forward", "done"] * 3, "forward", "step"] * 3
