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


def test_a_step_is_that_of_stage_2(tiny_recipe, one_thread):
    context = prepare(tiny_recipe)
    with closing(context.stream(range(1))) as stream:
        batches = [to_batch(host, torch.device("cpu"), context.cache) for host in stream]
    counts = sum(local_counts(tiny_recipe.terms, b) for b in batches)
    means = student.train_step(context, batches) / counts
    line = json.loads((train(tiny_recipe) / "metrics.jsonl").read_text().splitlines()[0])
    for name, mean in zip(labels(tiny_recipe.terms), means.tolist(), strict=True):
        assert mean == pytest.approx(line[f"term_{name}"], rel=1e-5), name


def test_a_step_trains(tiny_recipe, tiny_world):
    pictures = open_pictures(tiny_world / "shards")
    answers = measure_teachers(tiny_recipe, pictures, "cpu", 8, 60.0, threading.Event())
    specs = {spec.name: spec for spec in answers.specs}
    context = student.context_for(tiny_recipe, pictures, specs)
    hosts, picture_ms = student.read_pictures(tiny_recipe, pictures)
    assert len(hosts) == 2 and picture_ms > 0
    before = [parameter.clone() for parameter in context.distiller.parameters()]
    known = student._with_targets(context, hosts, answers.targets)
    assert student._timed_step(context, hosts, known) > 0
    after = list(context.distiller.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True) if b.ndim > 1)


def test_the_time_bounds_the_steps(tiny_recipe, tiny_world):
    pictures = open_pictures(tiny_world / "shards")
    answers = measure_teachers(tiny_recipe, pictures, "cpu", 8, 60.0, threading.Event())
    stop = threading.Event()
    assert student.measure_student(tiny_recipe, pictures, answers, 0.0, stop).num_steps == 3
    # a batch larger than the data set is read and taken all the same
    large = replace(tiny_recipe, batch=32, micro_batch=16)
    found = student.measure_student(large, pictures, answers, 0.0, stop)
    assert found.num_steps == 3 and found.student_ms > 0
