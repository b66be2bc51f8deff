"""What is said of a data set or a cache in a store names its URL, not the folder of its copies."""

import errno
import sys

import pytest

from stillroom.cache import match_cache, open_cache
from stillroom.checking.run_check import CheckOptions, run_check
from stillroom.commands import check_cache
from stillroom.errors import DamageError, StillroomError, UserError
from stillroom.extraction.preflight import require_space
from stillroom.os_errors import explain_os_errors
from stillroom.pictures.dataset import open_pictures
from stillroom.remote.mirror import place_of
from stillroom.remote.store import Store


@pytest.fixture
def place(s3, tmp_path):
    """The folder of the copies of what lies below a name in the bucket."""
    return lambda name: place_of(f"{s3.url}/{name}", str(tmp_path / "local"))


def test_an_incomplete_or_unfitting_cache_is_named_and_checked_by_its_url(
    s3, place, claim, write, tmp_path, capsys
):
    cache = claim(place("caches"))
    write(cache, cache.shard_ids()[0])
    url = f"{s3.url}/caches/{cache.path.name}"
    with pytest.raises(UserError, match=f"shard train-000001 of {url} is not published yet"):
        cache[5]
    with pytest.raises(UserError, match=f"caches in {s3.url}/caches fits; the nearest is {url}"):
        match_cache(place("caches"), "another digest", None, {})
    result = run_check(place("caches"), None, None, CheckOptions())
    text = "\n".join(result.lines())
    assert f"--run.cache {url} goes on" in text and f"check-cache {url} RECIPE" in text
    assert str(tmp_path) not in text and result.as_json()["cache"] == url
    with pytest.raises(UserError, match=f"there is no cache in {s3.url}/nothing"):
        match_cache(place("nothing"), "any", None, {})


def test_damage_in_a_store_is_named_by_its_url(s3, place, claim, write):
    cache = claim(place("caches"))
    write(cache, cache.shard_ids()[0])
    there = Store(f"{s3.url}/caches/{cache.path.name}")
    there.put("train-000000.json", b"no pointer" * 20)
    with pytest.raises(DamageError, match=f"{there.url}/train-000000.json is damaged"):
        cache.shards.fetch_again("train-000000.zarr")
    there.put("codecs.safetensors", b"nothing")
    with pytest.raises(DamageError, match=f"{there.url}/codecs.safetensors is no safetensors"):
        _ = open_cache(cache.path).fitted
    Store(f"{s3.url}/shards").put("dataset.json", b"{}" * 99)
    with pytest.raises(StillroomError, match=f"{s3.url}/shards/dataset.json is damaged"):
        open_pictures(place("shards"))


def test_what_the_disk_of_the_copies_refuses_names_that_disk_and_its_flag(s3, place, claim):
    cache = claim(place("caches"))
    with pytest.raises(StillroomError) as told, explain_os_errors("it stops", cache.path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert f"the disk of {cache.path} is full" in str(told.value)
    assert "--run.local" in str(told.value) and "--run.cache" not in str(told.value)


def test_a_disk_that_holds_less_than_the_cache_does_not_keep_it_from_a_store(
    place, claim, monkeypatch
):
    monkeypatch.setattr("stillroom.extraction.preflight.free_bytes", lambda _: 1)
    cache = claim(place("caches"))
    require_space(cache, cache.missing(), lambda: {})


def check_with(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["stillroom check-cache", *words])
    with pytest.raises(SystemExit):
        check_cache.run()


def test_a_check_without_a_recipe_keeps_copies_where_it_is_told(
    s3, place, claim, write, tmp_path, monkeypatch, capsys
):
    cache = claim(place("caches"))
    write(cache, cache.shard_ids()[0])
    check_with(monkeypatch, f"{s3.url}/caches", "--run.local", str(tmp_path / "there"))
    assert "1 shards, 3 rows" in capsys.readouterr().out
    assert list((tmp_path / "there").rglob("shard.json"))
    assert not (tmp_path / "user-cache" / "stillroom").exists()


def test_a_check_with_a_recipe_takes_both_flags_for_the_recipe(s3, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("stillroom.checking.run_check.run_check", lambda *words: seen.append(words))
    with pytest.raises(AttributeError):  # nothing was checked, so there is nothing to say
        monkeypatch.setattr("sys.argv", ["stillroom check-cache", f"{s3.url}/caches", "tiny"])
        sys.argv += ["--run.local", str(tmp_path / "there"), "--run.local-gb", "2"]
        check_cache.run()
    ((place, recipe, _, _),) = seen
    assert (recipe.run.local, recipe.run.local_gb) == (str(tmp_path / "there"), 2)
    assert place.is_relative_to(tmp_path / "there")
