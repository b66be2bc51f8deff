"""The check reads every byte, names what is wrong by its place, and writes nothing."""

import errno
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from stillroom.cache.folder import open_cache
from stillroom.checking import parallel_scrub
from stillroom.checking.check import check_cache, find_folder
from stillroom.errors import FailureError, Stopped, UserError
from stillroom.jsonfile import encode_json, read_json, write_json
from stillroom.pictures.dataset import ShardInfo, open_pictures, set_digest
from stillroom.types import ShardId

both_bodies = pytest.mark.parametrize("body", ["zarr", "tar"], indirect=True)
SHARD = ShardId("train", 1)


def folder_of(cache: Path, shard: ShardId = SHARD) -> Path:
    """The published folder of a shard, whatever the body."""
    return next(path for path in cache.glob(f"{shard}.*") if path.is_dir())


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def state(cache: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in cache.rglob("*")}


def places(cache: Path, **options) -> set[tuple[str, ShardId | None]]:
    return {(p.kind, p.shard) for p in check_cache(cache, **options).problems}


@both_bodies
@pytest.mark.parametrize("workers", [1, 4])
def test_a_whole_cache_has_no_problem_and_is_not_written_to(spoilt, pictures, workers):
    before = state(spoilt)
    report = check_cache(spoilt, pictures, workers=workers)
    assert report.problems == ()
    assert (report.num_shards, report.num_rows) == (4, 32)
    shards = [folder_of(spoilt, id_) for id_ in open_cache(spoilt).shard_ids()]
    assert report.num_bytes == sum(f.stat().st_size for s in shards for f in files_of(s))
    assert "4 shards, 32 rows" in report.summary and "all is well" in report.summary
    assert state(spoilt) == before


@both_bodies
def test_a_flipped_bit_in_any_file_of_a_shard_is_named_with_shard_and_file(spoilt):
    generator = np.random.default_rng(7)
    for file in files_of(folder_of(spoilt)):
        data = file.read_bytes()
        for bit in generator.integers(0, 8 * len(data), 5):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << (bit % 8)
            file.write_bytes(changed)
            report = check_cache(spoilt, only={SHARD})
            found = [problem for problem in report.problems if problem.kind == "shard"]
            assert found, (file, bit)
            assert {problem.shard for problem in report.problems} <= {SHARD, None}
            assert any(file.name in p.what and str(SHARD) in p.what for p in found), (file, found)
            assert all("\n" not in problem.what for problem in report.problems)
        file.write_bytes(data)
    assert check_cache(spoilt).problems == ()


@pytest.mark.parametrize("name", ["identity.json", "codecs.safetensors", "manifest.json"])
def test_harm_to_a_file_of_the_whole_cache_is_told_once_and_not_blamed_on_shards(spoilt, name):
    file, place = spoilt / name, name.partition(".")[0]
    data = file.read_bytes()
    generator = np.random.default_rng(3)
    harms = [data[:-1], data[: len(data) // 2], b"", data + b"x", b"{}", b"[" * 5000]
    for bit in generator.integers(0, 8 * len(data), 10):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        harms.append(bytes(changed))
    for harm in harms:
        file.write_bytes(harm)
        (problem,) = check_cache(spoilt, only=()).problems
        assert (problem.kind, problem.shard, problem.path) == (place, None, file), problem
    file.unlink()
    (problem,) = check_cache(spoilt, only=()).problems
    assert problem.kind == ("incomplete" if place == "manifest" else place)
    file.mkdir()
    (problem,) = check_cache(spoilt, only=()).problems
    assert problem.kind == place


def test_a_wrong_file_of_fitted_values_is_at_fault_and_the_rows_are_checked_all_the_same(spoilt):
    header = b'{"shapes/step":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (spoilt / "codecs.safetensors").write_bytes(data)  # valid, of another cache
    (folder_of(spoilt) / "more").write_text("x")
    assert places(spoilt) == {("codecs", None), ("shard", SHARD)}


@both_bodies
def test_one_shard_of_another_cache_is_blamed_on_the_shard(spoilt):
    file = folder_of(spoilt) / "shard.json"
    for member in ("fingerprint", "codecs_sha256"):
        body = read_json(file)
        write_json(file, body | {member: "ab" * 32})
        found = check_cache(spoilt).problems
        assert {problem.shard for problem in found} == {SHARD}
        assert f"{member} differs" in found[0].what
        write_json(file, body)


def test_the_identity_of_another_cache_is_blamed_on_the_identity(spoilt):
    body = read_json(spoilt / "identity.json")
    body["pictures"]["digest"] = "ab" * 32
    write_json(spoilt / "identity.json", body)
    (problem,) = check_cache(spoilt).problems
    assert problem.kind == "identity" and "identity of another cache" in problem.what


def test_a_cache_that_was_renamed_is_still_good(spoilt):
    assert check_cache(spoilt.rename(spoilt.with_name("mine"))).problems == ()


@both_bodies
def test_a_removed_file_is_named(spoilt):
    for file in files_of(folder_of(spoilt)):
        data = file.read_bytes()
        file.unlink()
        found = check_cache(spoilt, only={SHARD}).problems
        assert any(p.shard == SHARD and str(file) in p.what for p in found)
        file.write_bytes(data)


def test_a_folder_that_is_a_file_and_an_empty_shard_are_damage(spoilt):
    folder = folder_of(spoilt)
    shutil.rmtree(folder)
    folder.mkdir()
    assert places(spoilt, only={SHARD}) == {("shard", SHARD)}
    folder.rmdir()
    folder.write_text("no folder")
    assert places(spoilt, only={SHARD}) == {("shard", SHARD)}


@both_bodies
def test_an_incomplete_cache_says_how_many_are_missing_and_how_to_go_on(spoilt):
    shutil.rmtree(folder_of(spoilt))
    (problem,) = check_cache(spoilt).problems
    assert problem.kind == "incomplete"
    assert f"1 of 4 shards are missing ({SHARD}), though manifest.json is there" in problem.what
    assert f"stillroom cache RECIPE --run.cache {spoilt} goes on" in problem.what
    (spoilt / "manifest.json").unlink()
    (problem,) = check_cache(spoilt).problems
    assert problem.kind == "incomplete" and "though" not in problem.what


def test_without_a_manifest_a_cache_is_not_finished_though_all_shards_are_there(spoilt):
    (spoilt / "manifest.json").unlink()
    (problem,) = check_cache(spoilt).problems
    assert problem.kind == "incomplete" and "all 4 shards are there" in problem.what


def test_a_manifest_that_does_not_follow_from_the_shards_is_named(spoilt):
    body = read_json(spoilt / "manifest.json")
    write_json(spoilt / "manifest.json", body | {"rows": 31})
    (problem,) = check_cache(spoilt).problems
    assert (problem.kind, problem.path) == ("manifest", spoilt / "manifest.json")


@both_bodies
def test_a_file_within_a_shard_that_does_not_belong_is_damage(spoilt):
    (folder_of(spoilt) / "more").write_text("x")
    (problem,) = check_cache(spoilt).problems
    assert problem.shard == SHARD and "more does not belong" in problem.what


@pytest.mark.parametrize("change", ["key", "view"])
def test_keys_and_views_are_compared_with_the_pictures_where_these_are_given(
    spoilt, spoilt_recipe, pictures, change
):
    file = folder_of(spoilt) / "shard.json"
    body = read_json(file)
    key = body["rows"]["key"][3]
    if change == "key":
        body["rows"]["key"][3] += "x"
    else:
        body["rows"]["view"][3] = [0, 0, 0, 16, 32, 0]
    write_json(file, body)  # with every checksum right
    assert open_cache(spoilt).finalize()
    assert check_cache(spoilt).problems == ()
    (problem,) = check_cache(spoilt, pictures, spoilt_recipe.rows_of).problems
    assert problem.shard == SHARD and f"the rows of {key}" in problem.what
    assert (f"{key}x" in problem.what) == (change == "key")


def test_other_pictures_are_named_by_shard_and_size(spoilt, tiny_world, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_world / "shards", shards)
    body = read_json(shards / "dataset.json")
    body["shards"][1]["pictures"] = "ab" * 32
    body["digest"] = set_digest([ShardInfo(**entry) for entry in body["shards"]])
    write_json(shards / "dataset.json", body)
    (problem,) = check_cache(spoilt, open_pictures(shards)).problems
    assert problem.kind == "pictures" and str(SHARD) in problem.what
    other_size = open_pictures(tiny_world / "shards")
    other_size.geometry = (16, 64)
    problem = check_cache(spoilt, other_size).problems[0]
    assert problem.kind == "pictures" and "size = [16, 64]" in problem.what


def test_a_damaged_index_of_the_pictures_is_not_the_fault_of_the_cache(
    spoilt, tiny_world, tmp_path
):
    shards = Path(shutil.copytree(tiny_world / "shards", tmp_path / "shards"))
    (shards / f"{SHARD}.json").unlink()
    assert places(spoilt, pictures=open_pictures(shards)) == {("pictures", SHARD)}


def test_a_sector_that_cannot_be_read_is_damage_and_a_missing_permission_is_not(
    spoilt, monkeypatch
):
    def failing(number):
        def preadv(*_):
            raise OSError(number, os.strerror(number))

        return preadv

    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    assert places(spoilt, only={SHARD}) == {("shard", SHARD)}
    monkeypatch.setattr(os, "preadv", failing(errno.EACCES))
    with pytest.raises(FailureError, match=r"train-000001.*could not be checked"):
        check_cache(spoilt, only={SHARD})


def test_the_cache_is_found_by_its_folder_or_the_folder_above(spoilt, tmp_path):
    assert find_folder(spoilt) == find_folder(spoilt.parent) == spoilt
    (spoilt / "identity.json").unlink()
    assert find_folder(spoilt) == spoilt  # a damaged one is still one
    other = Path(shutil.copytree(spoilt, spoilt.with_name("other")))
    with pytest.raises(UserError, match="2 caches") as caught:
        find_folder(spoilt.parent)
    assert str(other) in str(caught.value) and str(spoilt) in str(caught.value)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nothing", other / "manifest.json"):
        with pytest.raises(UserError):
            find_folder(path)


def test_a_cache_of_another_version_is_a_mistake_and_no_damage(spoilt):
    body = read_json(spoilt / "identity.json")
    data = encode_json(body | {"format": "stillroom cache 9"})
    (spoilt / "identity.json").write_bytes(data)
    with pytest.raises(UserError, match="version"):
        check_cache(spoilt)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ends_at_once_and_leaves_no_thread(spoilt, monkeypatch, request, number):
    scrub, begun = parallel_scrub.scrub_reader, []

    def scrubbing(*words, **more):
        begun.append(1)
        if len(begun) == 2:
            os.kill(os.getpid(), number)
        return scrub(*words, **more)

    monkeypatch.setattr(parallel_scrub, "scrub_reader", scrubbing)
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background: not
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, heard))
    with pytest.raises(Stopped if number == signal.SIGTERM else KeyboardInterrupt):
        check_cache(spoilt, workers=1)
    assert not any(thread.name.startswith("scrub") for thread in threading.enumerate())
