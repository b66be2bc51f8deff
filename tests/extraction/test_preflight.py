"""Stage 1 does not begin what will not fit on the disk, and does not make anyone wait for that."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import stillroom.extraction.extract as extract
import stillroom.extraction.preflight as preflight
from stillroom.cache.folder import open_cache
from stillroom.cache.frames import encode_frame
from stillroom.errors import UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.recipe import Recipe
from stillroom.types import ShardId

ROW_BYTES = 2 * (4 * 32 * 48 + 16 * 8 * 12)  # uncompressed


@pytest.fixture
def recipe(tiny_recipe, tmp_path) -> Recipe:
    return replace(tiny_recipe, run=replace(tiny_recipe.run, cache=str(tmp_path / "cache")))


@pytest.fixture
def free(monkeypatch):
    """Sets what the disk is said to have free."""
    return lambda count: monkeypatch.setattr(preflight, "free_bytes", lambda _: count)


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """The size of every batch that the teachers answer."""
    answer, sizes = extract.run_teachers, []

    def answering(teachers, batch, device):
        sizes.append(len(batch))
        return answer(teachers, batch, device)

    monkeypatch.setattr(extract, "run_teachers", answering)
    return sizes


def test_what_will_not_fit_is_refused_before_the_first_shard_with_both_amounts(recipe, free, seen):
    free(100_000)
    with pytest.raises(UserError) as refused:
        cache_teacher(recipe, ProcessContext())
    said = str(refused.value)
    assert "0.1 MB free" in said
    assert "32 missing rows of" in said
    assert "--run.no-preflight" in said
    assert seen == [recipe.micro_batch]
    (folder,) = Path(recipe.run.cache).iterdir()
    assert len(open_cache(folder).missing()) == 4
    assert not list((folder / "tmp").iterdir())


def test_the_refusal_can_be_overruled(recipe, free):
    free(0)
    without = replace(recipe, run=replace(recipe.run, preflight=False))
    assert cache_teacher(without, ProcessContext()).is_complete


def test_where_even_uncompressed_rows_fit_no_picture_is_shown_to_anyone(recipe, free, seen):
    free(32 * ROW_BYTES)
    assert cache_teacher(recipe, ProcessContext()).is_complete
    assert sum(seen) == 32


def test_the_estimate_is_what_the_cache_takes(recipe, free, monkeypatch):
    monkeypatch.setattr(
        preflight, "_PART_BYTES", 300
    )  # most of it is per shard, and those are tiny
    free(0)
    with pytest.raises(UserError) as refused:
        cache_teacher(recipe, ProcessContext())
    estimate = float(refused.value.wanted.split(" MB")[0]) * 1e6
    without = replace(recipe, run=replace(recipe.run, preflight=False))
    shards = cache_teacher(without, ProcessContext()).path.glob("*.zarr")
    taken = sum(path.stat().st_size for s in shards for path in s.rglob("*") if path.is_file())
    assert taken == pytest.approx(estimate, rel=0.3)


def test_rows_are_taken_as_the_writer_compresses_them(recipe, free):
    free(10**12)
    cache, missing = cache_teacher(recipe, ProcessContext()), (ShardId("train", 0),)
    values = np.random.default_rng(0).integers(0, 4, (2, 20_000), np.uint8)
    assert len({len(encode_frame(values[0], level)) for level in (1, 2, 3)}) == 3
    row_bytes = 850 + sum(len(encode_frame(row, 1)) for row in values) / 2
    free(0)
    with pytest.raises(UserError) as refused:
        preflight.require_space(cache, missing, lambda: {"shapes.value": values})
    assert f"8 missing rows of {row_bytes / 1e6:.3g} MB " in str(refused.value.wanted)


def test_only_what_is_missing_must_fit(recipe, free):
    cache = cache_teacher(recipe, ProcessContext())
    (cache.path / "train-000001.zarr").rename(cache.path / "quarantine" / "x")
    free(0)
    with pytest.raises(UserError, match="8 missing rows"):
        cache_teacher(recipe, ProcessContext())


def test_a_complete_cache_needs_no_space(recipe, free):
    cache_teacher(recipe, ProcessContext())
    free(0)
    assert cache_teacher(recipe, ProcessContext()).is_complete
