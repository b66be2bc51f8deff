"""Puts stage 1 under fire and prints one JSON object: scenario -> case -> outcome.

`python driver.py FOLDER zarr|tar few|many MODULE.FUNCTION...`: the scenarios are functions of
refusals, stops and races; `many` tries every write, moment and round.
"""

import json
import sys
import threading
from pathlib import Path

import races
import refusals
import stops
from attempts import World
from forked import BodyName


def main(folder: Path, body: BodyName, many: bool, names: list[str]) -> None:
    modules = {"races": races, "refusals": refusals, "stops": stops}
    large = {"refusals.small_disks", "refusals.foreseen"}
    outcomes, worlds = {}, {}
    for name in names:
        size = 96 if name in large else 16
        if size not in worlds:
            worlds[size] = World(
                folder / str(size), body, size=size, shard_rows=12 if size > 16 else 2
            )
        module, _, function = name.partition(".")
        outcomes[name] = getattr(modules[module], function)(worlds[size], many)
    assert threading.active_count() == 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    folder, body, amount, *names = sys.argv[1:]
    assert body == "zarr" or body == "tar"
    main(Path(folder), body, amount == "many", names)
