"""Before a shard has its name, every byte and every name in it is durable."""

import os
from pathlib import Path

import pytest

from stillroom.cache.folder import claim_cache
from stillroom.types import ShardId

SHARD = ShardId("train", 0)


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, Path]]:
    """Every fsync, with the path it made durable, and every rename of a folder, in order."""
    found: list[tuple[str, Path]] = []
    fsync, rename = os.fsync, os.rename

    def syncing(descriptor: int) -> None:
        found.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def renaming(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            found.append(("rename", Path(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    return found


def test_files_then_folders_are_flushed_before_the_rename_and_the_parent_after_it(
    tmp_path: Path, make, events
):
    cache = claim_cache(tmp_path, "durable", make.identity())
    cache.publish_fitted({})
    events.clear()
    assert make.shard(cache, SHARD)
    published = make.folder(cache, SHARD)
    renamed = events.index(("rename", published))
    before = [path for kind, path in events[:renamed] if kind == "fsync"]
    aside = next(path for path in before if path.parent.name == "tmp")
    synced = {path.relative_to(aside) for path in before if path.is_relative_to(aside)}
    inside = {path.relative_to(published) for path in published.rglob("*")}
    files = {path for path in inside if (published / path).is_file()} - {Path("shard.json")}
    folders = {path for path in inside if (published / path).is_dir()} | {Path()}
    assert files <= synced, "bytes"
    assert folders <= synced, "names"
    assert any(path.name.startswith(".shard.json") for path in synced)
    last = max(before.index(aside / path) for path in files)
    assert all(before.index(aside / path) > last for path in folders)
    assert ("fsync", cache.path) in events[renamed:]
