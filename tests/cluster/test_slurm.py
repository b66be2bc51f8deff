"""Both stages under a real Slurm with two nodes, by the scripts of cluster/: `make test-cluster`.

Each test goes on where the one before it ended, as jobs of a day do; what happens is printed with
its second.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillroom.cache.folder import Cache, open_cache
from stillroom.jsonfile import read_json

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(280)]
STAGE_2 = ("--nodes=2", "cluster/train_student.sbatch")


@pytest.fixture(scope="module")
def cluster(make_tiny, load_module, tmp_path_factory) -> Iterator:
    """Two nodes, and a checkout with pictures and a teacher."""
    slurm = load_module("cluster/slurm.py")
    if reason := slurm.why_not():
        pytest.skip(reason)
    checkout = tmp_path_factory.mktemp("checkout")
    make_tiny.make_pictures(checkout)
    make_tiny.make_teacher(checkout / "teacher")
    shutil.copy(ROOT / "tests" / "cluster" / "paced.py", checkout)
    for name in (".venv", "cluster", "tools", "accelerate_configs", "train_student.py"):
        (checkout / name).symlink_to(ROOT / name)
    with slurm.start_slurm(checkout) as cluster:
        yield cluster
    assert not slurm.processes_of(cluster.folder)


@pytest.fixture(scope="module")
def cached(cluster) -> Cache:
    """What an array of two tasks made of which one was killed."""
    cluster.submit("--array=0-1", "cluster/cache_teacher.sbatch", "paced.py:killed")
    cluster.wait_for("both tasks have ended", lambda: not cluster.call("squeue", "-h"))
    (folder,) = (cluster.checkout / "cache").glob("paced-*")
    return open_cache(folder)


@pytest.fixture(scope="module")
def hung(cluster, cached) -> tuple[int, float]:
    """A job whose rank 1 was stopped, and when; it waits while the next ones run."""
    job = train(cluster, "hung", "--run.timeout-s", 30, STEP_S=0.3)
    (pid,) = {*micros(cluster, job, 1, at_least=3)}
    os.kill(pid, signal.SIGSTOP)
    cluster.event(f"job {job}: SIGSTOP to rank 1")
    return job, time.time()


@pytest.fixture(scope="module")
def straight(cluster, hung) -> int:
    """A run that nothing interrupts."""
    job = train(cluster, "straight")
    cluster.end(job, "COMPLETED")
    return job


@pytest.fixture(scope="module")
def again(cluster, straight) -> tuple[int, dict, int]:
    """The straight run's job, queued again when it was finished; the receipt and the number of
    micro-batches before that.
    """
    receipt = read_json(cluster.checkout / "runs" / "straight" / "receipt.json")
    num_micros = len(micros(cluster, straight, 0, at_least=1))
    cluster.call("scontrol", "requeue", straight)
    cluster.event(f"job {straight}: queued again")
    return straight, receipt, num_micros


def train(cluster, run: str, *flags: object, **environment: object) -> int:
    config = "accelerate_configs/cpu.yaml"
    return cluster.submit(*STAGE_2, run, "paced.py:recipe", *flags, CONFIG=config, **environment)


def micros(cluster, job: int, rank: int, at_least: int) -> list[int]:
    """The process of each micro-batch that a rank has made, once there are so many."""
    path = cluster.checkout / f"micros-{job}-{rank}"
    found: list[int] = []

    def enough() -> bool:
        found[:] = map(int, path.read_text().split()) if path.exists() else []
        return len(found) >= at_least

    cluster.wait_for(f"job {job}: rank {rank} has made {at_least} micro-batches", enough)
    return found


def require_the_student_of(cluster, run: str) -> None:
    """To the last bit that of the run that nothing interrupted."""
    one, two = (
        load_file(cluster.checkout / "runs" / name / "student.safetensors")
        for name in ("straight", run)
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    cluster.event(f"run {run}: the student is that of the straight run, to the last bit")


def test_an_array_of_which_a_task_is_killed_makes_the_whole_cache(cluster, cached):
    assert cached.is_complete
    assert cached.missing() == ()
    assert "Killed" in cluster.log("1_1")
    assert "complete" in cluster.log("1_0")
    assert "\r" not in cluster.log("1_0")
    cluster.event("task 1 was killed in its first shard, task 0 made the rest")


def test_told_to_stop_while_a_node_is_drained_it_saves_waits_for_the_node_and_resumes(
    cluster, straight
):
    job = train(cluster, "stopped", "--run.evaluate-every", 10, STEP_S=0.2)
    micros(cluster, job, 0, at_least=3)
    cluster.call("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=repair")
    micros(cluster, job, 0, at_least=6)
    assert cluster.job(job, "JobState") == "RUNNING"
    cluster.event(f"node n2 is drained, job {job} goes on")
    cluster.call("scancel", "--signal=TERM", job)
    run = cluster.checkout / "runs" / "stopped"
    saved_s = cluster.wait_for("saved", lambda: [*run.glob("checkpoints/step-*")])
    assert (
        saved_s < 10
    )  # within 5 s and a step, though the log has no line and no evaluation is due
    cluster.wait_for("queued again", lambda: cluster.job(job, "JobState") == "PENDING")
    (checkpoint,) = run.glob("checkpoints/step-*")
    assert 3 <= int(checkpoint.name.removeprefix("step-")) < 30
    assert "Traceback" not in cluster.log(job)
    assert "told to stop" in cluster.log(job)
    cluster.call("scontrol", "update", "NodeName=n2", "State=RESUME")
    cluster.event("node n2 is back")
    cluster.wait_for("started again", lambda: cluster.job(job, "JobState") == "RUNNING")
    cluster.end(job, "COMPLETED")
    assert f"resumed from runs/stopped/checkpoints/{checkpoint.name}" in cluster.log(job)
    assert not (run / "requeue").exists()
    require_the_student_of(cluster, "stopped")


def test_a_killed_rank_ends_the_job_which_queued_again_goes_on_or_begins_anew(cluster, again):
    job = train(cluster, "killed", STEP_S=0.2)
    run, pids = cluster.checkout / "runs" / "killed", []
    for has_saved in (False, True):
        if has_saved:
            cluster.wait_for("a checkpoint", lambda: [*run.glob("checkpoints/step-*")])
        pids.append(micros(cluster, job, 1, at_least=1)[-1])
        os.kill(pids[-1], signal.SIGKILL)
        cluster.event("SIGKILL to rank 1")
        assert cluster.end(job, "FAILED") < 60
        assert [*run.glob("checkpoints/step-*")] == [
            run / "checkpoints" / "step-000015"
        ] * has_saved
        (cluster.checkout / f"micros-{job}-1").unlink()
        cluster.call("scontrol", "requeue", job)
        cluster.wait_for("started again", lambda: cluster.job(job, "JobState") == "RUNNING")
    assert pids[0] != pids[1]
    cluster.end(job, "COMPLETED")
    said = cluster.log(job)
    assert said.count("rank 1 ended with SIGKILL") == 2
    assert said.count("another process of this run has ended or hangs, at step") == 2
    assert "resumed from runs/killed/checkpoints/step-000015" in said
    require_the_student_of(cluster, "killed")


def test_a_run_that_is_finished_is_not_started_again(cluster, again):
    job, receipt, num_micros = again
    cluster.end(job, "COMPLETED")
    assert "runs/straight was finished" in cluster.log(job)
    assert read_json(cluster.checkout / "runs" / "straight" / "receipt.json") == receipt
    assert len(micros(cluster, job, 0, at_least=1)) == num_micros


def test_a_rank_that_hangs_ends_the_job_and_is_named_with_the_step(cluster, hung):
    job, stopped_at = hung
    cluster.end(job, "FAILED")
    ended = datetime.fromisoformat(cluster.job(job, "EndTime")).timestamp()
    cluster.event(f"job {job}: ended {ended - stopped_at:.0f} s after the SIGSTOP")
    assert ended - stopped_at < 30 + 60
    said = cluster.log(job)
    assert "rank 1 did not answer for 30 s (--run.timeout-s), at step" in said
    assert "Traceback" not in said
