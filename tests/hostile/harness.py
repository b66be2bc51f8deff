"""One hostile file, read in a child process that is watched: does it end, how soon, how large?

The child is a fork of a process that has imported everything, so that a case costs milliseconds.
Its seconds are the processor's, which other work does not lengthen. Extra memory is the growth of
its peak over its beginning; what it may map is limited as a second line.
"""

import json
import os
import re
import resource
import select
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from stillroom.errors import StillroomError

MAX_SECONDS, MAX_MB = 2.0, 200.0
_HANG_SECONDS = 20.0
_MORE_ADDRESSES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Case:
    """`make` spoils a copy of the clean world; `read` reads it and must be refused.

    `says` is a pattern that the refusal must match: a case that is refused for something else
    proves nothing.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    says: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a case; `outcome` is `refused`, `accepted`, `broke` or `hung`."""

    outcome: str
    said: str
    seconds: float = 0.0
    extra_mb: float = 0.0  # growth of the peak of resident memory


def is_good(case: Case, verdict: Verdict) -> bool:
    """Whether it was refused, for the right reason, soon and small."""
    is_right = verdict.outcome == "refused" and re.search(case.says, verdict.said) is not None
    return is_right and verdict.seconds < MAX_SECONDS and verdict.extra_mb < MAX_MB


def in_child(work: Callable[[], object]) -> Verdict:
    """Run `work` in a fork of this process and say what became of it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(asdict(_watch(work))).encode())
        finally:
            os._exit(0)  # nothing of the parent's is cleaned up twice
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        is_there, _, _ = select.select([pipe], [], [], _HANG_SECONDS)
        data = pipe.read() if is_there else b""
    if not data:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if data:
        return Verdict(**json.loads(data))
    return Verdict(outcome="broke" if is_there else "hung", said=f"status {status}")


def _watch(work: Callable[[], object]) -> Verdict:
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _MORE_ADDRESSES,) * 2)
    before, began = _status("VmRSS"), time.process_time()
    try:
        outcome, said = "accepted", f"{work()!r:.200}"
    except StillroomError as error:
        outcome, said = "refused", f"{type(error).__name__}: {error}"[:400]
    except BaseException as error:  # whatever a user would see as a traceback
        outcome, said = "broke", f"{type(error).__name__}: {error}"[:400]
    seconds = round(time.process_time() - began, 4)
    extra_mb = round((_status("VmHWM") - before) / 1e6, 1)
    return Verdict(outcome=outcome, said=said, seconds=seconds, extra_mb=extra_mb)


def _status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
