"""What a run needs is found before its first step; what is frozen keeps still to the last bit."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from stillroom.cache import find_caches
from stillroom.errors import UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.pictures.dataset import open_pictures
from stillroom.recipe import Recipe
from stillroom.students.definitions import UNetStudent
from stillroom.students.distiller import build_distiller
from stillroom.teachers.configs import RunTeacher
from stillroom.training.checkpoint import save_student
from stillroom.training.find_cache import find_cache
from stillroom.training.loop import train
from stillroom.training.setup import make_accelerator, prepare
from stillroom.training.step import seed_forward

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps the precision for the whole process; a test has its own."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def student(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that belong to the student."""
    tensors = load_file(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")
    return {n.removeprefix("student."): t for n, t in tensors.items() if n.startswith("student.")}


def moved(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in old.items() if not torch.equal(tensor, new[name])}


def kept(recipe: Recipe, **run: object) -> Recipe:
    return replace(recipe, run=replace(recipe.run, keep=9, **run))


def test_fp16_on_a_cpu_is_refused(tiny_recipe):
    with pytest.raises(UserError, match="fp16 training needs a GPU"):
        prepare(replace(tiny_recipe, precision="fp16"))


@pytest.mark.parametrize(
    ("more", "device", "what"),
    [
        ({"precision": "fp16"}, "auto", "fp16 training needs a GPU"),
        ({}, "cuda", r"CUDA was asked for(.|\n)*found: +a launch on the CPU"),
    ],
)
def test_a_launch_on_the_cpu_is_one_where_there_is_a_gpu_too(
    tiny_recipe, monkeypatch, more, device, what
):
    """As accelerate_configs/cpu.yaml launches; Accelerate would train fp32 and call it fp16."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=what):
        prepare(replace(tiny_recipe, run=replace(tiny_recipe.run, device=device), **more))


def test_bf16_trains_on_a_cpu_and_says_so(tiny_recipe, capsys):
    run = train(replace(tiny_recipe, precision="bf16", epochs=1))
    assert "(bf16)" in capsys.readouterr().out
    assert {t.dtype for t in load_file(run / "student.safetensors").values()} == {
        torch.float32,
        torch.int64,
    }


def test_a_cuda_device_that_is_not_there_is_refused(tiny_recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--run\.device cpu"):
        prepare(replace(tiny_recipe, run=replace(tiny_recipe.run, device="cuda")))


def test_the_device_is_called_what_its_tensors_call_it(tiny_recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu:0")  # of tensors `cpu`; `cuda`: `cuda:0`
    accelerator = make_accelerator(tiny_recipe)
    assert accelerator.device == torch.empty(0, device="cpu:0").device


def test_one_seed_gives_one_start_and_another_seed_another(tiny_recipe):
    def start(name: str, seed: int) -> torch.Tensor:
        recipe = replace(tiny_recipe, seed=seed, run=replace(tiny_recipe.run, name=name))
        return torch.cat([p.flatten() for p in prepare(recipe).distiller.parameters()])

    assert torch.equal(start("a", 0), start("b", 0))
    assert not torch.equal(start("c", 0), start("d", 1))


def test_the_start_is_drawn_apart_from_every_step(tiny_recipe):
    context = prepare(tiny_recipe)
    assert context.cache is not None
    start, drawn = context.distiller.state_dict(), []
    for step in (-1, 0):
        seed_forward(tiny_recipe.seed, step, 0)
        again = build_distiller(
            tiny_recipe.student, tiny_recipe.terms, context.cache.specs, context.distiller.size
        )
        drawn.append(moved(start, again.state_dict()))
    assert not drawn[0] and "student.segmentation_head.weight" in drawn[1]


def test_frozen_parts_keep_still_for_their_epochs_and_move_afterwards(tiny_recipe):
    recipe = kept(replace(tiny_recipe, freeze=("encoder",), freeze_epochs=1))
    start = {n: t.clone() for n, t in prepare(recipe).distiller.student.state_dict().items()}
    run = train(recipe)
    first, last = student(run, 3), student(run, 6)
    encoder = {name for name in start if name.startswith("encoder.")}
    assert any("running_mean" in name for name in encoder)
    assert not moved(start, first) & encoder
    assert {"segmentation_head.weight", "decoder.0.1.running_var"} <= moved(start, first)
    assert moved(first, last) >= encoder


def test_how_often_a_run_is_evaluated_does_not_change_what_it_learns(tiny_recipe):
    recipe = replace(tiny_recipe, epochs=3, freeze=("encoder",), freeze_epochs=1)
    often = train(kept(recipe, name="often"))
    once = train(kept(recipe, name="once", evaluate_every=3, log_every=100))
    assert not moved(student(often, 9), student(once, 9))


def test_frozen_for_no_epoch_is_not_frozen(tiny_recipe):
    recipe = replace(tiny_recipe, epochs=1, freeze=("encoder",))
    never = train(kept(replace(recipe, freeze_epochs=0), name="never"))
    free = train(kept(replace(recipe, freeze=()), name="free"))
    assert not moved(student(never, 3), student(free, 3))


def test_frozen_for_good_asks_for_no_gradient_and_keeps_still(tiny_recipe):
    terms = tuple(term for term in tiny_recipe.terms if term.needs.tap is None)
    recipe = kept(replace(tiny_recipe, terms=terms, freeze=("encoder",), epochs=1))
    context = prepare(recipe)
    encoder = dict(context.distiller.student.encoder.named_parameters())
    assert not any(p.requires_grad for p in encoder.values())
    start = {n: t.clone() for n, t in context.distiller.student.state_dict().items()}
    after = student(train(recipe), 3)
    assert not {name for name in moved(start, after) if name.startswith("encoder.")}
    assert moved(start, after)


def test_a_tap_before_which_nothing_ever_trains_is_refused(tiny_recipe):
    frozen = replace(tiny_recipe, freeze=("encoder",))
    with pytest.raises(UserError, match="nothing before it trains at any epoch") as refused:
        prepare(frozen)
    assert refused.value.found == "freeze encoder"
    prepare(replace(frozen, freeze_epochs=1))


def test_without_the_teacher_s_files_the_recorded_identity_is_taken_and_said_so(
    tiny_recipe, capsys
):
    gone = replace(tiny_recipe.teachers[0], path="nowhere")
    pictures = open_pictures(Path(tiny_recipe.data.shards))
    recipe = replace(tiny_recipe, teachers=(gone,))
    for asked in (recipe, kept(recipe, recorded_teachers=True)):
        cache = find_cache(asked, pictures, True)
        assert cache is not None
        assert cache.path == find_caches(Path(tiny_recipe.run.cache))[0].path
        assert "the recorded identity is taken" in capsys.readouterr().out


def test_teachers_are_asked_with_what_the_caches_recorded_of_them(tiny_recipe, monkeypatch):
    identity, asked = RunTeacher.identity, []

    def noting(self, with_files=True, recorded=None):
        asked.append(recorded)
        return identity(self, with_files, recorded)

    monkeypatch.setattr(RunTeacher, "identity", noting)
    cache = find_cache(tiny_recipe, open_pictures(Path(tiny_recipe.data.shards)), False)
    assert cache is not None and asked == [cache.teachers]
    assert {entry["tensor"] for entry in cache.teachers} == {"logits", "encoder.2"}


def test_another_teacher_of_that_name_is_refused_with_the_command(make_tiny, tiny_recipe, tmp_path):
    shutil.copytree(tiny_recipe.teachers[0].path, tmp_path / "teacher")
    weights = load_file(tmp_path / "teacher" / "student.safetensors")
    weights["segmentation_head.bias"] += 1
    config = UNetStudent(width=4, depth=2, classes=4)
    network = config.build()
    network.load_state_dict(weights)
    save_student(tmp_path / "teacher", network, {"network": config.architecture()})
    other = replace(tiny_recipe.teachers[0], path=str(tmp_path / "teacher"))
    pictures = open_pictures(Path(tiny_recipe.data.shards))
    with pytest.raises(UserError, match=r"weights_sha256(.|\n)*stillroom cache tiny"):
        find_cache(replace(tiny_recipe, teachers=(other,)), pictures, True)


def test_the_same_cache_in_the_other_body_stops_no_resume(tiny_recipe, tmp_path):
    shutil.copytree(tiny_recipe.run.cache, tmp_path / "cache")
    recipe = kept(replace(tiny_recipe, epochs=1), cache=str(tmp_path / "cache"))
    first = prepare(recipe)
    train(recipe)
    cache_teacher(replace(recipe, body="tar"), ProcessContext())
    assert len(find_caches(tmp_path / "cache")) == 2
    resumed = kept(recipe, resume=True)
    for body in ("zarr", "tar"):
        context = prepare(replace(resumed, body=body))
        assert context.cache is not None and context.cache.identity["body"] == body
        for row in range(len(first.dataset)):
            (key, wanted), (same, found) = first.dataset.read(row), context.dataset.read(row)
            assert key == same and wanted.keys() == found.keys()
            assert all(np.array_equal(value, found[name]) for name, value in wanted.items())


def test_an_incomplete_cache_is_refused_with_the_count(tiny_recipe, tmp_path):
    copy = tmp_path / "cache"
    shutil.copytree(tiny_recipe.run.cache, copy)
    shutil.rmtree(next(copy.glob("*/train-000001.zarr")))
    recipe = replace(tiny_recipe, run=replace(tiny_recipe.run, cache=str(copy)))
    with pytest.raises(UserError, match="1 of 4 shards are missing"):
        prepare(recipe)
    assert not Path(recipe.run.out).exists()
