"""Under fire stage 1 says one thing, leaves nothing partial, and the next run completes the cache.

Everything runs in forked children of one driver (the folder `fire`), with a teacher of numpy.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("fire") / "driver.py"
SCENARIOS = (
    *("refusals.full_disk", "refusals.quarantine", "refusals.open_files", "refusals.read_only"),
    *("stops.signals", "stops.any_moment", "stops.array", "stops.parent"),
    *("races.one_shard", "races.whole_jobs", "races.identities"),
)
pytestmark = pytest.mark.timeout(1200)  # nothing here is decided by the clock
REAL_DISKS = ("refusals.small_disks", "refusals.foreseen")


def drive(folder: Path, body: str, amount: str, names: tuple[str, ...]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, DRIVER, folder, body, amount, *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


BODIES = ("zarr", pytest.param("tar", marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=BODIES)
def fire(tmp_path_factory, request) -> dict[str, Any]:
    return drive(tmp_path_factory.mktemp("fire"), request.param, "few", SCENARIOS)


def demand(cases: dict[str, Any], **wanted: Any) -> None:
    """Every case had these outcomes, said no traceback, and was completed by the next run."""
    assert cases
    for name, found in cases.items():
        expected = {"traceback": False, "in_tmp": 0, "rerun": 0, "problems": []} | wanted
        assert {key: found[key] for key in expected} == expected, (name, found)


def demand_words(found: dict[str, Any], *words: str) -> None:
    for word in (*words, "found:", "fix:"):
        assert word in found["said"], (word, found["said"])


def check_full_disk(cases: dict[str, Any]) -> None:
    demand(cases, status=1)
    for found in cases.values():
        demand_words(found, "is full", "No space left on device", "--run.cache")


def test_a_disk_that_is_full_at_any_kind_of_write(fire):
    check_full_disk(fire["refusals.full_disk"])
    found = [case["published"] for case in fire["refusals.full_disk"].values()]
    assert {0, 3} <= set(found)  # before the first is published, and after the last


def test_a_disk_that_is_full_when_a_damaged_shard_is_set_aside(fire):
    check_full_disk(fire["refusals.quarantine"])
    (found,) = fire["refusals.quarantine"].values()
    assert found["held"] == [True]
    assert found["published"] == 2


def test_too_many_open_files(fire):
    cases = fire["refusals.open_files"]
    refused = {limit: found for limit, found in cases.items() if found["status"]}
    assert 0 < len(refused) < len(cases)
    # A folder cannot be removed without opening it: what was begun may stay in tmp/.
    assert {found["in_tmp"] for found in refused.values()} <= {0, 1, 2}
    demand({limit: found | {"in_tmp": 0} for limit, found in refused.items()}, status=1)
    for limit, found in refused.items():
        demand_words(found, "no further file can be opened", f"may have {limit} open", "ulimit -n")


def test_folders_that_may_not_be_written(fire):
    cases = dict(fire["refusals.read_only"])
    demand({"finished": cases.pop("finished")}, status=0, published=3)
    demand(cases, status=2)
    for name, found in cases.items():
        demand_words(found, "may not be read or written", "Permission denied")
        assert (name == "tmp") == ("/tmp may not" in found["said"])


def test_told_to_stop_while_something_is_under_way(fire):
    cases = dict(fire["stops.signals"])
    late = {name: cases.pop(name) for name in list(cases) if "the last" in name}
    demand(late, status=0, published=3)
    (publishing,) = (cases.pop(name) for name in list(cases) if "publishing" in name)
    demand({"publishing": publishing})  # the last shard may be whole by then
    assert (publishing["published"], publishing["status"]) in ((2, 75), (3, 0))
    demand(cases, status=75)
    published = {"claimed": 0, "gate": 0, "mid-shard": 1}
    for name, found in cases.items():
        assert found["published"] == published[name.split()[-1]], name
        demand_words(found, "told to stop")


def test_told_to_stop_at_any_moment(fire):
    check_any_moment(fire["stops.any_moment"])


def check_any_moment(cases: dict[str, Any]) -> None:
    demand(cases)
    assert sum(found["status"] == 75 for found in cases.values()) > len(cases) / 2
    for found in cases.values():
        assert found["status"] == (0 if found["published"] == 3 else 75)


def test_the_other_tasks_of_an_array_complete_the_cache_when_one_dies(fire):
    demand(fire["stops.array"], status=0, died=-9, complete=True, in_tmp=1)


def test_when_the_launcher_is_killed_its_children_finish(fire):
    demand(fire["stops.parent"], status=0, died=-9, complete=True)


def test_of_several_writers_that_name_one_shard_at_one_moment_one_wins(fire):
    demand(fire["races.one_shard"], status=0, won=1, lost=2)


def test_two_whole_jobs_on_one_cache_make_it_together(fire):
    demand(fire["races.whole_jobs"], status=0, complete=True)


def test_a_job_of_another_identity_refuses_a_cache_that_is_named_exactly(fire):
    second = fire["races.identities"]["second"]
    assert (second["status"], second["nested"]) == (2, False)
    demand_words(second, 'path = "one"', 'path = "two"', "was made for something else")
    assert fire["races.identities"]["above"] == {"statuses": [0, 0], "complete": [True] * 3}


@pytest.mark.parametrize("body", ["zarr", "tar"])
@pytest.mark.slow
def test_a_disk_that_is_full_at_every_single_write(tmp_path, body):
    found = drive(tmp_path, body, "many", ("refusals.full_disk",))
    check_full_disk(found["refusals.full_disk"])
    assert len(found["refusals.full_disk"]) > (150 if body == "zarr" else 60)


@pytest.mark.parametrize("body", ["zarr", "tar"])
@pytest.mark.slow
def test_many_races_and_moments(tmp_path, body):
    names = ("stops.any_moment", "stops.array", "races.one_shard", "races.whole_jobs")
    found = drive(tmp_path, body, "many", names)
    check_any_moment(found["stops.any_moment"])
    demand(found["stops.array"], status=0, died=-9, complete=True, in_tmp=1)
    demand(found["races.one_shard"], status=0, won=1, lost=2)
    demand(found["races.whole_jobs"], status=0, complete=True)


@pytest.mark.parametrize("body", ["zarr", "tar"])
@pytest.mark.slow
def test_real_disks_that_are_too_small(tmp_path, body):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    subprocess.run(["umount", str(tmp_path)], check=True)
    found = drive(tmp_path, body, "many", REAL_DISKS)
    full = found["refusals.small_disks"]
    check_full_disk({size: case for size, case in full.items() if case["status"]})
    assert {case["published"] for case in full.values()} >= {0, 1, 2, 3}
    demand({size: case for size, case in full.items() if not case["status"]}, published=3)
    foreseen = found["refusals.foreseen"]
    refused = {size: case for size, case in foreseen.items() if case["status"]}
    demand(refused, status=2, published=0)  # none begins what it cannot finish
    for case in refused.values():
        demand_words(case, "will not fit", "missing rows", "--run.no-preflight")
    demand({size: case for size, case in foreseen.items() if not case["status"]}, published=3)
    assert 0 < len(refused) < len(foreseen)
