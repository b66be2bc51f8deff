"""Kills a small stage 1 at every fault point, reruns it, prints one JSON object of outcomes.

Everything runs in forked children of this process, so that the imports (seconds) are paid once. The
parent never calls zarr, whose threads would not survive the fork. The teacher is numpy only.
"""

import filecmp
import importlib.util
import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path

import zarr  # noqa: F401  (0.3 s that each child would pay)

import stillroom.cache.faults as faults
import stillroom.jsonfile as jsonfile
from stillroom.cache import Cache, claim_cache, open_cache, scrub_shard
from stillroom.cache.folder import BODIES
from stillroom.errors import DamageError

_spec = importlib.util.spec_from_file_location("make", Path(__file__).with_name("conftest.py"))
assert _spec is not None and _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)

EXTRA = ("row-appended:3", "frame-half-written:9", "folder-made:2", "renamed:3", "parent-synced:2")
ASIDE = ("link:1", "link:2", "replace:1", "replace:4")  # inside the writing of a JSON file
CASES = (*faults.POINTS, *EXTRA, *ASIDE)
CODECS = ("float16", "int8", "logits8", "stochastic:1.0")  # the cases take turns


def job(root: Path, body: str, codec: str) -> None:
    """What stage 1 does, without a teacher."""
    cache = claim_cache(root, "killed", make.identity_of(codec, body=body))
    cache.publish_fitted({})
    cache.quarantine_bad()
    for shard_id in cache.shard_ids():
        if not cache.is_published(shard_id):
            make.fill_shard(cache, shard_id)
    assert cache.finalize()


def child(root: Path, body: str, codec: str, fault: str | None) -> int:
    """Run the job in a child that may be killed; returns its signal, or minus its exit status."""
    process = os.fork()
    if process == 0:
        try:
            if fault is not None:
                os.environ["STILLROOM_FAULT"] = fault
                _kill_while_writing_json(fault)
            job(root, body, codec)
            os._exit(0)
        except BaseException as error:
            print(f"{fault}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    status = os.waitpid(process, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def _kill_while_writing_json(fault: str) -> None:
    """Die between the write of a temporary file and its rename or link."""
    point, _, visit = fault.partition(":")
    owner, method = {"link": (Path, "hardlink_to"), "replace": (jsonfile, "rename")}.get(
        point, (None, "")
    )
    if owner is None:
        return
    original, visits = getattr(owner, method), []

    def killing(self: Path, target: Path) -> object:
        visits.append(target)
        if len(visits) == int(visit):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, target)

    setattr(owner, method, killing)


def partial(root: Path) -> list[str]:
    """What a reader could see that is not whole."""
    problems = []
    for path in root.glob("killed-*"):
        if not (path / "identity.json").exists():
            continue
        cache = open_cache(path)
        shards = set(cache.shard_ids()) - set(cache.missing())
        for shard_id in shards:
            problems += map(str, scrub_shard(cache, shard_id))
        if (path / "manifest.json").exists() and cache.missing():
            problems.append("a manifest without its shards")
    return problems


def files(root: Path) -> dict[str, Path]:
    """Every file that counts, by its path below the cache."""
    (path,) = root.glob("killed-*")
    found = (item for item in path.rglob("*") if item.is_file())
    named = {item.relative_to(path).as_posix(): item for item in found}
    # names that begin with a dot are temporary files of a killed writer
    skipped = ("tmp/", "quarantine/", ".")
    return {name: item for name, item in named.items() if not name.startswith(skipped)}


def damage(root: Path) -> None:
    """Cut a file of a published shard."""
    name, path = next((n, p) for n, p in files(root).items() if n.endswith(("0/0/0/0", ".tar")))
    with path.open("rb+") as file:
        file.truncate(5)
    try:
        (folder,) = root.glob("killed-*")
        cache: Cache = open_cache(folder)
        for shard_id in cache.shard_ids():
            cache.is_published(shard_id)
    except DamageError:
        return
    raise AssertionError(f"nobody saw that {name} was cut")


def main(work: Path) -> None:
    assert threading.active_count() == 1, "a fork would lose threads"
    outcomes = {}
    for body in BODIES:
        outcomes |= {f"{body} {case}": said for case, said in kill(work / body, body).items()}
    print(json.dumps(outcomes))


def kill(work: Path, body: str) -> dict[str, dict[str, object]]:
    """Kill the job in every case and rerun it; what came of each."""
    for codec in CODECS:
        assert child(work / codec, body, codec, None) == 0
    straight, outcomes = {codec: files(work / codec) for codec in CODECS}, {}
    for case, codec in zip(CASES, itertools.cycle(CODECS), strict=False):
        root, wanted = work / case.replace(":", "-"), straight[codec]
        if case == "quarantined":
            assert child(root, body, codec, None) == 0
            damage(root)
        killed = child(root, body, codec, case)
        seen = partial(root)
        under_way = len(list(root.glob("*/tmp/*")))
        rerun = child(root, body, codec, None)
        found = files(root)
        equal = found.keys() == wanted.keys() and all(
            filecmp.cmp(path, wanted[name], shallow=False) for name, path in found.items()
        )
        outcomes[case] = {
            "killed": killed,
            "under_way": under_way,
            "partial": seen,
            "rerun": rerun,
            "equal": equal,
        }
    return outcomes


if __name__ == "__main__":
    main(Path(sys.argv[1]))
