"""A run that is killed five times and goes on with other ranks sees the same rows and losses."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillroom.training.log import read_metrics

DRIVER = Path(__file__).with_name("killed_driver.py")
STEPS, WORLDS = 42, (2, 1, 2, 2, 1, 2)


def start(world: int, *words: object) -> list[subprocess.Popen[str]]:
    """The driver in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    place |= {"WORLD_SIZE": str(world)} if world > 1 else {}
    return [
        subprocess.Popen(
            [sys.executable, str(DRIVER), *map(str, words)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def killed_after(children: list[subprocess.Popen[str]], run: Path, step: int) -> int:
    """The step that was logged last when all were killed."""
    while not any(line["step"] >= step for line in read_metrics(run)):
        for child in children:
            assert child.poll() is None, child.communicate()[0]
        time.sleep(0.05)
    for child in children:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    return max(line["step"] for line in read_metrics(run))


def rows(out: Path) -> dict[tuple[int, int], set[tuple[str, ...]]]:
    """The keys that each micro-batch of each step had, whenever it was run."""
    found: dict[tuple[int, int], set[tuple[str, ...]]] = {}
    for path in out.glob("rows-*.jsonl"):
        for line in path.read_text().splitlines():
            step, micro, keys = json.loads(line)
            found.setdefault((step, micro), set()).add(tuple(keys))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_five_times_with_ranks_2_1_2_the_rows_and_losses_are_the_same(tiny_world, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    (child,) = start(1, tiny_world, straight)
    said, _ = child.communicate()
    assert child.returncode == 0, said
    moments = sorted(random.Random(0).sample(range(4, STEPS - 2), 5))
    ends, resume = [], ()
    for world, moment in zip(WORLDS, [*moments, None], strict=True):
        children = start(world, tiny_world, killed, *resume)
        resume = ("resume",)
        if moment is not None:
            ends.append(killed_after(children, killed / "tiny", moment))
            continue
        said = [child.communicate()[0] for child in children]
        assert not any(child.returncode for child in children), said
    assert len(set(ends)) == 5 and max(ends) < STEPS
    assert rows(killed) == rows(straight)
    assert all(len(keys) == 1 for keys in rows(killed).values())
    assert len(rows(killed)) == 2 * STEPS
    one, two = (
        [line["loss"] for line in read_metrics(folder / "tiny") if line["kind"] == "train"]
        for folder in (straight, killed)
    )
    assert len(one) == STEPS and two == pytest.approx(one, abs=1e-6)
