"""Both stages on file systems that answer as NFS, Lustre and FUSE may: a layer under them does what
it is asked and says otherwise.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stillroom.cache import local_shards
from stillroom.cache.folder import Cache
from stillroom.errors import FailureError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.jsonfile import rename, write_bytes
from stillroom.training.loop import train


def answered_twice(monkeypatch) -> list[str]:
    """Every rename and link is done, its answer lost, and asked for again."""
    done, real_rename, real_link = [], os.rename, os.link

    def renamed(source: object, target: object) -> None:
        real_rename(source, target)
        done.append("rename")
        real_rename(source, target)

    def linked(source: object, target: object, **more: bool) -> None:
        real_link(source, target, **more)
        done.append("link")
        real_link(source, target, **more)

    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "link", linked)
    return done


def without_links(monkeypatch) -> list[str]:
    """No hard link can be made."""
    asked = []

    def refused(*_: object, **__: object) -> None:
        asked.append("link")
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    return asked


def stale_listings(monkeypatch) -> list[str]:
    """A listing is the one before the last change: shards that are there are missing from it."""
    asked, listed = [], os.scandir

    def stale(path: object) -> list[SimpleNamespace]:
        asked.append("scandir")
        entries = [SimpleNamespace(name=entry.name) for entry in listed(path)]
        shards = sorted(entry.name for entry in entries if entry.name.endswith(".zarr"))
        hidden = shards[-1:] if len(asked) % 2 else []
        return [entry for entry in entries if entry.name not in hidden]

    monkeypatch.setattr(local_shards, "os", SimpleNamespace(**vars(os)))
    monkeypatch.setattr(local_shards.os, "scandir", stale)
    return asked


def same(one: Cache, two: Cache) -> bool:
    return one.shard_ids() == two.shard_ids() and all(
        np.array_equal(a.read(i)[part], b.read(i)[part])
        for id_ in one.shard_ids()
        for a, b in [(one.reader(id_), two.reader(id_))]
        for i in range(len(a))
        for part in a.read(i)
    )


@pytest.mark.parametrize("layer", [answered_twice, without_links, stale_listings])
def test_a_cache_and_a_run_are_those_of_a_local_disk(
    tiny_recipe, tiny_world, tmp_path, monkeypatch, layer: Callable[..., list[str]]
):
    run = replace(tiny_recipe.run, out=str(tmp_path / "runs"))
    recipe = replace(tiny_recipe, epochs=1, run=run)
    straight = cache_teacher(recipe, ProcessContext())  # it is there, complete
    told = layer(monkeypatch)
    run = replace(recipe.run, cache=str(tmp_path / "cache"))
    for _ in range(2):  # where a listing was old, the same command finishes
        cache = cache_teacher(replace(recipe, run=run), ProcessContext())
    assert told and cache.is_complete and same(cache, straight)
    folder = train(replace(recipe, run=run))
    assert (folder / "receipt.json").is_file()
    train(replace(recipe, run=replace(run, resume=True)))


def test_a_rename_that_did_not_happen_is_no_success(tmp_path):
    with pytest.raises(FileNotFoundError):
        rename(tmp_path / "nothing", tmp_path / "target")
    (tmp_path / "source").touch()
    with pytest.raises(FileNotFoundError):
        rename(tmp_path / "source", tmp_path / "no" / "folder")


@pytest.mark.parametrize("layer", [answered_twice, without_links])
def test_of_two_files_of_one_name_the_first_stays(tmp_path, monkeypatch, layer):
    layer(monkeypatch)
    path: Path = tmp_path / "identity.json"
    assert write_bytes(path, b"first", replace=False)
    assert not write_bytes(path, b"second", replace=False)
    assert path.read_bytes() == b"first" and [*tmp_path.iterdir()] == [path]


def test_other_refusals_are_told(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises((OSError, FailureError)):
        write_bytes(tmp_path / "identity.json", b"first", replace=False)
