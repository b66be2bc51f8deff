"""A damaged cache never trains a student silently.

One bit of one file of the cache is turned over, then the trainer runs. Either it stops and names
the file, or the bit lies where the trainer never looks (Zarr's own metadata, a tar header, zeros
between members): then the student is the same to the last bit, and the check names the file.
"""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import stillroom.training.loop as loop
from stillroom.cache import find_caches
from stillroom.checking.check import check_cache
from stillroom.errors import StillroomError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.recipe import Recipe


@pytest.fixture(scope="module", params=["zarr", "tar"])
def world(request, make_tiny, tiny_world, tmp_path_factory) -> tuple[Recipe, Path, dict]:
    """A recipe of one epoch, the folder of its cache, and the student that it should train."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = replace(make_tiny.tiny_recipe(tiny_world, folder), epochs=1, body=request.param)
    recipe = replace(recipe, run=replace(recipe.run, cache=str(folder / "whole")))
    cache = cache_teacher(recipe, ProcessContext())
    return recipe, cache.path, student(recipe)


def student(recipe: Recipe) -> dict[str, torch.Tensor]:
    recipe = replace(recipe, run=replace(recipe.run, overwrite=True))
    return load_file(loop.train(recipe) / "student.safetensors")


def outcome(recipe: Recipe, wanted: dict[str, torch.Tensor], damaged: Path) -> str:
    """`trainer`: it stopped and named the file; `check`: it trained the wanted student, and the
    check named the file; `unnamed`; `silent`: another student.
    """
    cache = Path(recipe.run.cache)
    name = str(damaged.relative_to(cache))
    try:
        found = student(recipe)
    except StillroomError as error:
        return "trainer" if name in str(error) else f"unnamed: {error}"
    if not all(torch.equal(found[name], wanted[name]) for name in wanted):
        return "silent"
    said = [str(problem) for problem in check_cache(cache).problems]
    return "check" if any(name in line for line in said) else f"unnamed: {said}"


@pytest.mark.parametrize("num_flips", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_the_trainer_stops_at_a_flipped_bit_or_never_saw_it(world, tmp_path, num_flips, capsys):
    recipe, whole, wanted = world
    damaged = tmp_path / "cache" / whole.name
    recipe = replace(recipe, run=replace(recipe.run, cache=str(damaged)))
    generator = np.random.default_rng(7)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    files = [path for path in files if path.name != "zarr.json"]  # the trainer never reads it
    outcomes = Counter()
    for _ in range(num_flips):
        shutil.copytree(whole, damaged)
        path = damaged / files[generator.integers(len(files))]
        data = bytearray(path.read_bytes())
        data[generator.integers(len(data))] ^= 1 << generator.integers(8)
        path.write_bytes(data)
        outcomes[outcome(recipe, wanted, path)] += 1
        shutil.rmtree(damaged)
    with capsys.disabled():
        print(f"\n{num_flips} flips in {recipe.body}: {dict(outcomes)}")
    assert outcomes.keys() <= {"trainer", "check"}


def test_without_checks_a_flipped_bit_reaches_the_student(world, tmp_path, monkeypatch):
    """The test of the test above: with the checksum switched off, it would fail."""
    recipe, whole, wanted = world
    copy = tmp_path / "cache" / whole.name
    shutil.copytree(whole, copy)
    (cache,) = find_caches(copy)
    shard = cache.shard_ids("train")[0]
    spec, part = cache.shard_spec(shard), cache.parts[0]
    with cache.reader(shard) as reader:
        spans = reader.shard_index.spans[part.name]
    path = cache.path / spec.folder / spec.body.file_of(part)
    recipe = replace(recipe, run=replace(recipe.run, cache=str(copy)))
    monkeypatch.setattr("stillroom.cache.folder.ShardReader", _unchecked)
    data, found = path.read_bytes(), []
    for place in range(spans.offset[0] + spans.size[0] // 2, spans.offset[0] + spans.size[0]):
        changed = bytearray(data)
        changed[place] ^= 16
        path.write_bytes(changed)
        found.append(outcome(recipe, wanted, path))
        if "silent" in found:
            return
    pytest.fail(f"no flip went unnoticed without the checksum: {Counter(found)}")


def _unchecked(folder: Path, spec, *, check: bool = True, **more):
    from stillroom.cache.reader import ShardReader

    return ShardReader(folder, spec, check=False, **more)
