import json
import threading
from contextlib import closing
from dataclasses import replace

import pytest
import torch

import stillroom.planning.measure_student as student
from stillroom.pictures.dataset import open_pictures
from stillroom.planning.measure_teachers import measure_teachers
from stillroom.training.batches import to_batch
from stillroom.training.loop import train
from stillroom.training.setup import prepare
from stillroom.training.step import labels, local_counts


def test_a_step_is_that_of_stage_2(tiny_recipe):
    context = prepare(tiny_recipe)
    with closing(context.stream(range(1))) as stream:
        batches = [to_batch(host, torch.device("cpu"), context.cache) for host in stream]
    counts = sum(local_counts(tiny_recipe.terms, b) for b in batches)
    means = student.train_step(context, batches) / counts
    line = json.loads((train(tiny_recipe) / "metrics.jsonl").read_text().splitlines()[0])
    for name, mean in zip(labels(tiny_recipe.terms), means.tolist(), strict=True):
        assert mean == pytest.approx(line[f"term_{name}"], rel=1e-5), name


def test_steps_train_and_the_time_bounds_them(tiny_recipe, tiny_world, monkeypatch):
    pictures = open_pictures(tiny_world / "shards")
    answers = measure_teachers(tiny_recipe, pictures, "cpu", 8, 60.0, threading.Event())
    hosts, picture_ms = student.read_pictures(tiny_recipe, pictures)
    assert len(hosts) == 2 and picture_ms > 0
    specs = {spec.name: spec for spec in answers.specs}
    context = student.context_for(tiny_recipe, pictures, specs)
    monkeypatch.setattr(student, "context_for", lambda *_: context)
    before = [parameter.clone() for parameter in context.distiller.parameters()]
    ms, num_steps = student.measure_student(
        tiny_recipe, pictures, answers, hosts, 0.0, threading.Event()
    )
    assert ms > 0 and num_steps == 3
    after = list(context.distiller.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True) if b.ndim > 1)


def test_a_batch_larger_than_the_data_set_is_read_all_the_same(tiny_recipe, tiny_world):
    pictures = open_pictures(tiny_world / "shards")
    large = replace(tiny_recipe, batch=32, micro_batch=16)
    assert len(student.read_pictures(large, pictures)[0]) == 2
