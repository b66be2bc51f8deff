"""List data sets, caches and runs, and the caches that no run needs.

stillroom list [--delete]
"""

import shutil
from pathlib import Path

from stillroom.errors import UserError
from stillroom.flags import call


def main(
    shards: Path = Path("shards"),
    cache: Path = Path("cache"),
    runs: Path = Path("runs"),
    delete: bool = False,
) -> None:
    """List data sets, caches and runs: size, whether they are whole, score, what made them, and
    which caches no run needs.

    Args:
        shards: folder of data sets
        cache: folder of caches
        runs: folder of runs
        delete: delete the caches that no run needs, once you have said yes
    """
    from stillroom.using.inventory import deletion_text, inventory_text, take_inventory

    for path, usual in ((shards, "shards"), (cache, "cache"), (runs, "runs")):
        if not path.is_dir() and path != Path(usual):
            raise UserError(f"there is no folder {path}", fix=f"--{usual} FOLDER that is there")
    found = take_inventory(shards, cache, runs)
    print(inventory_text(found))
    if not delete:
        return
    if not found.unneeded:
        print("every cache is needed: nothing to delete")
        return
    try:
        answer = input(f"\n{deletion_text(found.unneeded)} [y/N] ")
    except EOFError:
        raise UserError("--delete asks first, and nobody answered") from None
    for one in found.unneeded if answer.strip().lower() in ("y", "yes") else ():
        shutil.rmtree(one.path)
        print(f"deleted {one.path}")


def run() -> None:
    """Do what the command line says."""
    call(main)
