"""A run says at its start what it trains on what."""

from dataclasses import replace

import torch

from stillroom.losses import CrossEntropy
from stillroom.students.pretrained import FastLiteStudent
from stillroom.training.receipt import describe
from stillroom.training.setup import prepare


def test_pictures_whose_label_is_not_used_are_counted_where_there_is_no_teacher(tiny_recipe):
    data = replace(tiny_recipe.data, label_share=0.5)
    alone = replace(tiny_recipe, terms=(CrossEntropy(),), teachers=(), codec={}, data=data)
    context = prepare(alone)
    used = len(context.dataset)
    assert 8 < used < 24
    first, left_out = describe(context).split("\n")
    assert f", {used} rows, 6 steps of 8 in micro-batches of 4 on 1 x cpu (fp32)" in first
    assert left_out.startswith(f"{24 - used} of 24 training rows have no label")
    assert "projections" not in first


def test_projections_are_counted_apart_and_with_a_teacher_no_picture_is_left_out(tiny_recipe):
    context = prepare(tiny_recipe)
    thrown = sum(p.numel() for p in context.distiller.projections.parameters())
    said = describe(context)
    assert f"(+ {thrown / 1e3:.1f} k in projections that are thrown away), 24 rows" in said
    assert "left out" not in said


def test_what_a_partial_load_of_weights_matched_is_told(tiny_recipe, tmp_path):
    other = FastLiteStudent(width=0.1, classes=9).build()
    torch.save(other.state_dict(), tmp_path / "a.pth")
    student = FastLiteStudent(width=0.1, classes=4, weights=f"{tmp_path}/a.pth", partial=True)
    alone = replace(tiny_recipe, student=student, terms=(CrossEntropy(),), teachers=(), codec={})
    _, said = describe(prepare(alone)).split("\n")
    assert said.startswith(f"{tmp_path}/a.pth: ")
    assert "2 keep their first values: segmentation_head.weight" in said
