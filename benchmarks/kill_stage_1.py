"""Stage 1 killed (SIGKILL) at ten random moments and then finished loses nothing.

`python benchmarks/kill_stage_1.py [--seed 0]` packs 40 + 8 pictures of shapes in six shards of
eight, makes two small stand-in teachers for `people-lite`, and caches once without interruption.
Then it starts stage 1 ten times on one other cache and kills it each time at a moment that is drawn
from the time in which shards are made: from its first folder in `tmp/` on, at most 1.3 times as
long as its first shard takes (0.6 times where only two are left). Two processes, the second started
a shard after the first, finish that cache. Every row, body file and statistic must be that of the
uninterrupted cache, and no shard may be missing or fail its scrub; otherwise the exit status is 1.
Figures: `benchmarks/results/kill_stage_1_cpu<cores>_<yyyymm>.json`. About 80 seconds.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.commands import words
from bench.machine import save
from bench.stages import people_lite_words

from stillroom.cache import Cache, open_cache

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "extraction" / "fire"))

from same_cache import differences

SIZE_PX, NUM_TRAIN, NUM_VAL, SHARD_ROWS, NUM_KILLS = 128, 40, 8, 8, 10
MASK_LAYERS = ((96, 1), (96, 1), (1, 1))  # slow enough to be hit
STAGE_1 = "tools/cache_teacher.py"
WAIT_S = 60.0  # for a process to begin a shard


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--codecs", nargs=2, default=["float16", "float16"], metavar="CODEC")
    arguments = parser.parse_args()
    seed, codecs = arguments.seed, arguments.codecs
    with tempfile.TemporaryDirectory() as name:
        flags = _prepare(Path(name), codecs)
        shard_s = _run_whole(flags, Path(name) / "whole")
        whole = _only(Path(name) / "whole")
        root = Path(name) / "killed"
        kills = _kill_often(flags, root, shard_s, random.Random(seed))
        killed = _only(root)
        left = len(killed.missing())
        apart = _finish_with_two(flags, root, killed)
        problems = differences(whole, killed)
        folders = len(_in_tmp(root))
    landed = sum(kill["during"] != "between shards" for kill in kills)
    exact = codecs == ["float16", "float16"]
    save(
        "kill_stage_1" if exact else f"kill_stage_1_{'_'.join(codecs).replace(':', '')}",
        f"python benchmarks/kill_stage_1.py --seed {seed} --codecs {' '.join(codecs)}",
        {
            "shards": len(whole.shard_ids()),
            "first_shard_seconds": round(shard_s, 2),
            "kills": kills,
            "kills_while_a_shard_was_made": landed,
            "shards_left_after_the_kills": left,
            "finished_by": apart,
            "problems": problems,
            "folders_left_in_tmp": folders,
        },
    )
    sys.exit(1 if problems else 0)


def _prepare(folder: Path, codecs: list[str]) -> list[object]:
    """Make pictures and teachers; return the flags of stage 1."""
    recipe = people_lite_words(folder, SIZE_PX, NUM_TRAIN, NUM_VAL, SHARD_ROWS, MASK_LAYERS)
    small = ["--batch", 2, "--micro-batch", 2, "--gate", "off", "--run.device", "cpu"]
    kept = ["--codec.person", codecs[0], "--codec.detector", codecs[1]]
    return [*recipe, *kept, *small]


def _only(root: Path) -> Cache:
    (path,) = root.iterdir()
    return open_cache(path)


def _run_whole(flags: list[object], root: Path) -> float:
    """Cache without interruption; return how many seconds the first shard took."""
    child = _start(flags, root)
    _wait_for(lambda: bool(_in_tmp(root)), child)
    began = time.perf_counter()
    _wait_for(lambda: bool(set(root.glob("*/*.zarr"))), child)
    seconds = time.perf_counter() - began
    _finish(child)
    return seconds


def _kill_often(
    flags: list[object], root: Path, shard_s: float, generator: random.Random
) -> list[dict[str, object]]:
    """Start and kill; return for each kill when it came and what it interrupted."""
    kills = []
    for _ in range(NUM_KILLS):
        before = _in_tmp(root)
        longest = 1.3 if not before or len(_only(root).missing()) > 2 else 0.6
        delay = generator.uniform(0, longest * shard_s)
        child = _start(flags, root)
        _wait_for(lambda before=before: bool(_in_tmp(root) - before), child)
        time.sleep(delay)
        assert child.poll() is None, "stage 1 ended before it was killed"
        child.kill()
        child.communicate()
        kills.append({"after_s": round(delay, 3), "during": _during(_in_tmp(root) - before)})
    return kills


def _in_tmp(root: Path) -> set[Path]:
    return set(root.glob("*/tmp/*"))


def _during(folders: set[Path]) -> str:
    """How far a killed process was with the shards that it was making."""
    if not folders:
        return "between shards"
    if any((folder / "shard.json").is_file() for folder in folders):
        return "publishing"
    bodies = (body for folder in folders for body in folder.rglob("c/0/0/0/0"))
    return "appending rows" if any(body.stat().st_size for body in bodies) else "opening a shard"


def _finish_with_two(flags: list[object], root: Path, cache: Cache) -> list[dict[str, object]]:
    """Finish with two processes, the second started when the first has published one more shard."""
    missing = len(cache.missing())
    assert missing >= 2, "too few shards are left for two processes"
    first = _start(flags, root, 0)
    _wait_for(lambda: len(cache.missing()) < missing, first)
    left = len(cache.missing())
    second = _start(flags, root, 1)
    _finish(first)
    _finish(second)
    return [
        {"rank": rank, "missing_at_its_start": count} for rank, count in enumerate((missing, left))
    ]


def _start(flags: list[object], root: Path, rank: int | None = None) -> subprocess.Popen[str]:
    """Start stage 1 alone, or as one of two processes."""
    place = {} if rank is None else {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    return subprocess.Popen(
        words(STAGE_1, *flags, "--run.cache", root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **place},
    )


def _finish(child: subprocess.Popen[str]) -> None:
    outputs, _ = child.communicate()
    if child.returncode != 0:
        raise RuntimeError(f"stage 1 ended with status {child.returncode}:\n{outputs}")


def _wait_for(happened, child: subprocess.Popen) -> None:
    """Look every 2 ms until something has happened; RuntimeError if the process ends before."""
    began = time.perf_counter()
    while not happened():
        if child.poll() is not None or time.perf_counter() - began > WAIT_S:
            raise RuntimeError(f"stage 1 ended with {child.poll()} or did not begin in {WAIT_S} s")
        time.sleep(0.002)


if __name__ == "__main__":
    main()
