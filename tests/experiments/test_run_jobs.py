"""Jobs run in order, in all places at once; a failure stops what depends on it and nothing else."""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stillroom.errors import DamageError
from stillroom.experiments.jobs import Job
from stillroom.experiments.run_jobs import Process, find_places, run_jobs


class Fake(Process):
    """A command that ends with `status` once it has been polled, or when it is told to; enough,
    since only poll, terminate, reason and log are used of a process.
    """

    def __init__(self, status: int | None) -> None:
        self.status, self.log, self.asked = status, Path("a.log"), 0

    def poll(self) -> int | None:
        return self.status

    def terminate(self) -> None:
        self.asked += 1
        self.status = 75

    def reason(self) -> str:
        return "it broke"


def job(name: str, *needs: str, is_done: Callable[[], bool] = lambda: False) -> Job:
    return Job(name=name, needs=needs, is_done=is_done, words=lambda: [name])


def ran(jobs, statuses=None, places=1, stop=None, tell=lambda *_: None):
    """Run jobs by fakes; return what was started, where, and how each job ended."""
    started = []

    def start(job, place):
        started.append((job.name, place["gpu"]))
        return Fake((statuses or {}).get(job.name, 0))

    places = [{"gpu": f"{number}"} for number in range(places)]
    records = run_jobs(jobs, places, start, stop or threading.Event(), tell)
    return started, {name: record["state"] for name, record in records.items()}, records


CHAIN = (
    job("teacher"),
    job("cache", "teacher"),
    job("plain"),
    job("student", "cache"),
    job("evaluate", "student"),
)


def test_jobs_begin_after_what_they_need():
    started, states, _ = ran(CHAIN)
    names = [name for name, _ in started]
    assert {*names} == {one.name for one in CHAIN} and {*states.values()} == {"done"}
    for one in CHAIN:
        assert all(names.index(need) < names.index(one.name) for need in one.needs)


def test_what_depends_on_a_failure_is_skipped_and_the_rest_goes_on():
    started, states, records = ran(CHAIN, {"cache": 2})
    assert [name for name, _ in started] == ["teacher", "cache", "plain"]
    wanted = {"teacher": "done", "plain": "done", "cache": "failed"}
    assert states == {**wanted, "student": "skipped", "evaluate": "skipped"}
    assert records["cache"]["reason"] == "it broke"
    assert records["student"]["reason"] == "needs cache (failed)"
    assert records["evaluate"]["reason"] == "needs student (skipped)"


def test_what_is_done_is_not_done_again_and_asked_for_only_when_its_turn_comes():
    done: set[str] = set()

    def cached() -> bool:
        assert done == {"teacher"}
        return True

    jobs = (job("teacher"), job("cache", "teacher", is_done=cached), job("student", "cache"))
    started, states, records = ran(jobs, tell=lambda n, r: done.add(n) if "seconds" in r else None)
    assert [name for name, _ in started] == ["teacher", "student"]
    assert {*states.values()} == {"done"} and "seconds" not in records["cache"]


def test_damage_that_is_met_while_looking_is_that_jobs_failure():
    def damaged() -> bool:
        raise DamageError("a flipped bit")

    _, states, records = ran((job("a", is_done=damaged), job("b")))
    assert states == {"a": "failed", "b": "done"}
    assert records["a"]["reason"] == "a flipped bit"


def test_two_places_are_both_used_and_each_by_one_job_at_a_time():
    busy: set[str] = set()
    most = 0

    class Slow(Fake):
        def __init__(self, place: str) -> None:
            super().__init__(None)
            self.place, self.polls = place, 0

        def poll(self) -> int | None:
            self.polls += 1
            if self.polls == 2:
                busy.remove(self.place)
                self.status = 0
            return self.status

    def start(_, place):
        nonlocal most
        assert place["gpu"] not in busy
        busy.add(place["gpu"])
        most = max(most, len(busy))
        return Slow(place["gpu"])

    jobs = [job(f"{n}") for n in range(5)]
    places = [{"gpu": "0"}, {"gpu": "1"}]
    records = run_jobs(jobs, places, start, threading.Event(), lambda *_: None)
    assert most == 2 and len(records) == 5


def test_a_stop_is_passed_on_once_and_nothing_more_begins():
    stop, children = threading.Event(), []

    def start(*_):
        children.append(Fake(None))
        stop.set()
        return children[-1]

    records = run_jobs(CHAIN, [{}], start, stop, lambda *_: None)
    assert {name: record["state"] for name, record in records.items()} == {"teacher": "stopped"}
    assert [child.asked for child in children] == [1]


def test_children_are_told_to_end_where_we_fail():
    child = Fake(None)

    def tell(*_):
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        run_jobs([job("a")], [{}], lambda *_: child, threading.Event(), tell)
    assert child.asked == 1


def process(tmp_path: Path, code: str) -> Process:
    child = Process(["-c", code], tmp_path / "logs" / "a.log", {"PLACE": "7"})
    deadline = time.monotonic() + 20
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return child


def test_the_reason_is_the_errors_paragraph_of_this_call_and_the_log_keeps_all(tmp_path):
    said = "import os, sys; print('stillroom: old'); print('PLACE', os.environ['PLACE']); "
    first = process(tmp_path, said + "print('stillroom: no\\n  fix: so\\nafter'); sys.exit(2)")
    assert first.poll() == 2
    assert first.reason() == "no\n  fix: so"
    second = process(tmp_path, "import sys; print('what now'); sys.exit(3)")
    assert second.reason() == "ended with status 3\n  what now"
    log = second.log.read_text()
    assert "PLACE 7" in log and "what now" in log and log.count("$ python -c") == 2


def test_a_child_is_not_in_our_terminals_group(tmp_path):
    child = process(tmp_path, "import os; print(os.getpgrp() == os.getpid())")
    assert child.log.read_text().endswith("True\n")
    assert sys.executable not in child.log.read_text()


@pytest.mark.parametrize(
    ("device", "count", "visible", "wanted"),
    [
        ("auto", 0, None, [None]),
        ("auto", 1, None, [None]),
        ("cpu", 2, None, [None]),
        ("auto", 2, None, ["0", "1"]),
        ("cuda", 2, "5,3", ["5", "3"]),
    ],
)
def test_there_is_a_place_for_each_gpu_that_is_seen(monkeypatch, device, count, visible, wanted):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    places = find_places(device)
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in places] == wanted
    assert all(place.get("OMP_NUM_THREADS", "1") == "1" for place in places)
