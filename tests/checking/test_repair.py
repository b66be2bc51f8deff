"""A repair makes again exactly what is broken, and touches nothing before it knows that it may."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillroom.cache.folder import open_cache
from stillroom.checking.check import check_cache
from stillroom.checking.check_result import CheckResult
from stillroom.checking.run_check import CheckOptions, run_check
from stillroom.errors import DamageError, StillroomError, UserError
from stillroom.jsonfile import read_json, write_json
from stillroom.recipe import Recipe
from stillroom.types import ShardId

both_bodies = pytest.mark.parametrize("body", ["zarr", "tar"], indirect=True)
SHARD, VAL = ShardId("train", 1), ShardId("val", 0)


def folder_of(cache: Path, shard: ShardId = SHARD) -> Path:
    return next(path for path in cache.glob(f"{shard}.*") if path.is_dir())


def flip(file: Path, place: int = 100) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)


def rows(cache: Path) -> dict[str, np.ndarray]:
    opened, found = open_cache(cache), {}
    for shard in opened.shard_ids():
        with opened.reader(shard) as reader:
            for i, row in enumerate(reader.rows):
                found |= {f"{row.key} {part}": v for part, v in reader.read(i).items()}
    return found


def state(cache: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder but quarantine, which only grows, and tmp."""
    found = [
        p for p in cache.rglob("*") if p.relative_to(cache).parts[0] not in ("quarantine", "tmp")
    ]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def mend(cache: Path, recipe: Recipe | None) -> CheckResult:
    return run_check(cache, recipe, None, CheckOptions(repair=True))


def largest_file(cache: Path) -> Path:
    files = [path for path in folder_of(cache).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


HARMS = {
    "bit": lambda cache: flip(largest_file(cache)),
    "record": lambda cache: flip(folder_of(cache) / "shard.json"),
    "stranger": lambda cache: (folder_of(cache) / "more").write_text("x"),
    "missing": lambda cache: shutil.rmtree(folder_of(cache)),
    "two": lambda cache: (flip(largest_file(cache)), shutil.rmtree(folder_of(cache, VAL))),
    "file": lambda cache: largest_file(cache).unlink(),
}


@pytest.mark.parametrize(
    ("harm", "body"), [*[(h, "zarr") for h in HARMS], ("bit", "tar")], indirect=["body"]
)
def test_bad_and_missing_shards_are_made_again_and_no_other_is_touched(spoilt, spoilt_recipe, harm):
    good, before = rows(spoilt), state(spoilt)
    HARMS[harm](spoilt)
    assert check_cache(spoilt).problems
    found = mend(spoilt, spoilt_recipe)
    assert found.is_well and found.fix is None, found.problems
    assert check_cache(spoilt).problems == ()
    after = rows(spoilt)
    assert all(np.array_equal(after[name], value) for name, value in good.items())
    broken = {SHARD, VAL} if harm == "two" else {SHARD}
    whole = [id_ for id_ in open_cache(spoilt).shard_ids() if id_ not in broken]
    now = state(spoilt)
    for path, stamp in before.items():
        if any(path.is_relative_to(folder_of(spoilt, id_)) for id_ in whole):
            assert now[path] == stamp
    names = [p.name for p in (spoilt / "quarantine").iterdir() if p.is_dir()]
    assert len(names) == (harm != "missing") and all(str(SHARD) in name for name in names)
    assert found.num_shards == len(broken)  # only what was changed is read again


def test_without_a_recipe_the_bad_shard_is_set_aside_and_the_command_is_said(spoilt):
    flip(largest_file(spoilt))
    found = mend(spoilt, None)
    assert not found.is_well
    assert {problem.kind for problem in found.problems} == {"incomplete"}
    assert not list(spoilt.glob(f"{SHARD}.*"))
    assert f"shard {SHARD} was moved to" in found.repaired[0]
    assert found.fix == f"stillroom check-cache {spoilt} RECIPE --repair"
    (reason,) = (spoilt / "quarantine").glob("*.json")
    assert "is damaged" in read_json(reason)["why"]


def spoil_manifest(cache: Path) -> None:
    write_json(cache / "manifest.json", read_json(cache / "manifest.json") | {"rows": 31})


MANIFESTS = {
    "bit": lambda cache: flip(cache / "manifest.json", 20),
    "older": spoil_manifest,
    "absent": lambda cache: (cache / "manifest.json").unlink(),
}


@both_bodies
@pytest.mark.parametrize("harm", MANIFESTS)
def test_a_bad_manifest_is_written_again_without_a_recipe(spoilt, harm):
    data, before = (spoilt / "manifest.json").read_bytes(), state(spoilt)
    MANIFESTS[harm](spoilt)
    found = mend(spoilt, None)
    assert found.is_well, found.problems
    assert (spoilt / "manifest.json").read_bytes() == data
    now = state(spoilt)
    assert {path for path in before if now[path] != before[path]} == {spoilt / "manifest.json"}


@pytest.mark.parametrize("gone", [False, True])
def test_fitted_values_of_codecs_that_fit_nothing_are_written_again(spoilt, gone):
    file = spoilt / "codecs.safetensors"
    data, before = file.read_bytes(), state(spoilt)
    file.unlink() if gone else flip(file, 5)
    found = mend(spoilt, None)
    assert found.is_well, found.problems
    assert file.read_bytes() == data
    assert {path for path, stamp in state(spoilt).items() if before[path] != stamp} == {file}


def test_fitted_values_that_the_shards_need_are_never_made_again(spoilt, spoilt_recipe):
    file = spoilt / "codecs.safetensors"
    for path in spoilt.glob("*/shard.json"):
        write_json(path, read_json(path) | {"codecs_sha256": "ab" * 32})
    assert {problem.kind for problem in check_cache(spoilt).problems} == {"codecs"}
    before = state(spoilt)
    for recipe in (None, spoilt_recipe):
        with pytest.raises(DamageError, match=rf"{file.name}(.|\n)*restore it from a backup"):
            mend(spoilt, recipe)
    assert state(spoilt) == before and not list((spoilt / "quarantine").iterdir())


@pytest.mark.parametrize("harm", ["flipped", "gone", "of another cache"])
def test_a_lost_identity_is_one_problem_and_no_repair_begins(spoilt, spoilt_recipe, harm):
    file = spoilt / "identity.json"
    if harm == "of another cache":
        body = read_json(file)
        write_json(file, body | {"pictures": body["pictures"] | {"digest": "ab" * 32}})
    else:
        file.unlink() if harm == "gone" else flip(file)
    flip(largest_file(spoilt))
    (problem,) = check_cache(spoilt).problems
    assert (problem.kind, problem.path) == ("identity", file)
    before = state(spoilt)
    whole = replace(spoilt_recipe, run=replace(spoilt_recipe.run, cache=str(spoilt)))
    for recipe in (None, whole):
        with pytest.raises(DamageError, match=r"identity\.json(.|\n)*into a new folder"):
            mend(spoilt, recipe)
    assert state(spoilt) == before and not list((spoilt / "quarantine").iterdir())


def test_nothing_is_touched_where_recipe_or_pictures_are_not_those_of_the_cache(
    spoilt, spoilt_recipe, make_tiny, tmp_path
):
    flip(largest_file(spoilt))
    before = state(spoilt)
    make_tiny.make_pictures(tmp_path / "others", train=16)
    data = replace(spoilt_recipe.data, shards=str(tmp_path / "others" / "shards"))
    teacher = replace(spoilt_recipe.teachers[0], taps=(("inner", "encoder.1"),))
    for other in (replace(spoilt_recipe, data=data), replace(spoilt_recipe, teachers=(teacher,))):
        with pytest.raises(UserError, match=r"found:(.|\n)*wanted:"):
            mend(spoilt, other)
        assert state(spoilt) == before
        assert not list((spoilt / "quarantine").iterdir())


def test_a_repair_that_cannot_be_done_leaves_the_cache_to_the_next_one(
    spoilt, spoilt_recipe, tiny_world, tmp_path
):
    good = rows(spoilt)
    flip(largest_file(spoilt))
    strict = replace(spoilt_recipe, gate="refuse", gate_floor=0.99)
    with pytest.raises(StillroomError, match="gate"):
        mend(spoilt, strict)
    (problem,) = check_cache(spoilt).problems
    assert problem.kind == "incomplete"
    assert mend(spoilt, spoilt_recipe).is_well
    after = rows(spoilt)
    assert all(np.array_equal(after[name], value) for name, value in good.items())


def test_a_whole_cache_is_not_touched_by_a_repair(spoilt, spoilt_recipe):
    before = state(spoilt)
    found = mend(spoilt, spoilt_recipe)
    assert found.is_well and found.repaired == ()
    assert state(spoilt) == before
