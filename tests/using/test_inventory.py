"""What lies in the folders is listed as it is, and only what no run needs may be deleted."""

import builtins
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from stillroom.cache.folder import open_cache
from stillroom.errors import UserError
from stillroom.jsonfile import read_json, write_json
from stillroom.recipe import plain
from stillroom.using.inventory import inventory_text, take_inventory


@pytest.fixture
def place(tmp_path, tiny_world, tiny_recipe) -> Path:
    """A data set, two caches of it of which a finished run names one, and that run."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "cache").mkdir()
    shutil.copytree(tiny_world / "shards", tmp_path / "shards" / "shapes")
    (made,) = (tiny_world / "cache").glob("*/identity.json")
    shutil.copytree(made.parent, tmp_path / "cache" / made.parent.name)
    other = tmp_path / "cache" / "other-00000000"
    shutil.copytree(made.parent, other)
    identity = read_json(other / "identity.json")
    identity["targets"]["inner"]["teacher"]["sha256"] = "another"
    write_json(other / "identity.json", identity)
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    data = replace(tiny_recipe.data, shards=str(tmp_path / "shards" / "shapes"))
    recipe = plain(replace(tiny_recipe, data=data))
    write_json(run / "recipe.json", {"recipe": recipe, "begin": None})
    cache = {"name": made.parent.name, "fingerprint": open_cache(made.parent).fingerprint}
    write_json(run / "receipt.json", {"cache": cache, "ended_early": False})
    write_json(run / "student.json", {"score": {"miou": 0.5, "agreement": 0.9}})
    return tmp_path


def found(place: Path):
    return take_inventory(place / "shards", place / "cache", place / "runs")


def names(place: Path) -> list[str]:
    return [entry.path.name for entry in found(place).unneeded]


def test_everything_is_listed_with_size_state_score_and_what_made_it(place):
    text = inventory_text(found(place))
    (data,) = [line for line in text.splitlines() if "/shapes" in line]
    assert "24 train, 8 val" in data and "complete" in data
    (run,) = [line for line in text.splitlines() if "runs/a" in line]
    assert "finished" in run and "mIoU 0.5000, tiny (UNetStudent), " in run
    caches = [line for line in text.splitlines() if "/cache/" in line]
    assert "no run needs it" in caches[0] and "for a" in caches[1]
    assert all("32 rows" in line and "RunTeacher" in line for line in caches)
    size = sum(f.stat().st_size for f in (place / "cache").rglob("*") if f.is_file())
    assert f"caches: 2, {size / 1e6:.1f} MB" in text


def test_a_cache_is_needed_by_its_run_and_by_every_unfinished_one_of_its_pictures(place):
    assert names(place) == ["other-00000000"]
    (place / "runs" / "a" / "receipt.json").unlink()
    assert names(place) == [] and "not finished" in inventory_text(found(place))
    shutil.rmtree(place / "shards" / "shapes")  # whose pictures they are cannot be told any more
    assert names(place) == []
    shutil.rmtree(place / "runs" / "a")
    assert len(names(place)) == 2


def test_what_is_damaged_is_said_and_never_offered(place):
    path = place / "cache" / "other-00000000" / "identity.json"
    path.write_bytes(path.read_bytes()[:-9])
    assert names(place) == [] and "unreadable" in inventory_text(found(place))
    path = place / "runs" / "a" / "recipe.json"
    path.write_bytes(b"{}")
    shutil.rmtree(path.parents[2] / "cache" / "other-00000000")
    assert names(place) == []  # a run that cannot be read may need any


@pytest.mark.parametrize(("answer", "left"), [("y", 1), ("", 2), ("no", 2)])
def test_nothing_is_deleted_without_a_yes(place, monkeypatch, answer, left):
    asked = []
    monkeypatch.setattr(builtins, "input", lambda text: (asked.append(text), answer)[1])
    main = import_module("stillroom.commands.list").main
    main(place / "shards", place / "cache", place / "runs", delete=True)
    assert len(list((place / "cache").iterdir())) == left
    assert "other-00000000" in asked[0] and "delete 1 caches" in asked[0]


def test_where_nobody_can_answer_nothing_is_deleted(place, monkeypatch):
    def nobody(_):
        raise EOFError

    monkeypatch.setattr(builtins, "input", nobody)
    with pytest.raises(UserError, match="nobody answered"):
        import_module("stillroom.commands.list").main(
            place / "shards", place / "cache", place / "runs", delete=True
        )
