"""Named points where a test may kill the process, so that every crash window can be tried out.

`STILLROOM_FAULT=before-rename` kills at the first visit of that point,
`STILLROOM_FAULT=row-appended:3` at the third. Without the variable a visit costs about a
microsecond.
"""

import os
import signal
from collections import Counter

POINTS = (
    "identity-linked",  # identity.json has its name, nothing else is there
    "codecs-published",  # codecs.safetensors has its name
    "folder-made",  # the temporary folder exists and is empty
    "body-started",  # the files of the body exist, no row is in them
    "frame-half-written",  # the first half of a row's frame was written
    "row-appended",  # every part of a row was appended
    "body-finished",  # the body is complete, nothing is flushed
    "files-synced",  # every file of the body is durable
    "shard-json-written",  # shard.json exists in the temporary folder
    "folders-synced",  # every folder below the temporary one is durable
    "read-back",  # everything was read back and compared
    "renamed",  # the shard has its name, the parent is not flushed
    "parent-synced",  # the shard is published
    "quarantined",  # a damaged shard was moved away, its reason is not written
    "manifest-next",  # every shard is present, the manifest is not written
)
_visits: Counter[str] = Counter()


def reach(name: str) -> None:
    """Kill this process (SIGKILL) if the environment asks for it here."""
    assert name in POINTS, name
    wanted = os.environ.get("STILLROOM_FAULT")
    if wanted is None:
        return
    _visits[name] += 1
    point, _, visit = wanted.partition(":")
    if point == name and _visits[name] == int(visit or 1):
        os.kill(os.getpid(), signal.SIGKILL)
