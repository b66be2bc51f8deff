"""All cases together, and what must be accepted: the clean world, and what is odd and yet legal.

`python tests/hostile/cases.py [--every 16]` judges them, in a process without the checks of types
that tests have, and exits 1 where one is not refused, for its own reason, soon and small.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cache_cases
import kinds_cases
import numpy as np
import picture_cases
import run_cases
import teacher_cases
import world
from harness import Case, Verdict, in_child, is_good

from stillroom.cache import claim_cache, make_identity, open_cache
from stillroom.jsonfile import read_json

CASES: tuple[Case, ...] = (
    *kinds_cases.CASES,
    *picture_cases.CASES,
    *cache_cases.CASES,
    *run_cases.CASES,
    *teacher_cases.CASES,
)
_AT_ONCE = 40  # cases made in one child: a fork costs 50 ms
WAYS = (
    world.read_pictures,
    *(world.read_rows(body) for body in world.BODIES),
    *(world.scrub(body) for body in world.BODIES),
    world.use_run,
    world.teach_with_run,
    world.resume,
    world.load_foreign,
    world.teach_with_onnx(),
    world.identify_onnx,
    world.pack_again,
)


def _many_shards(folder: Path) -> None:
    """An identity of 60,000 shards: fifteen million pictures."""
    identity = read_json(folder / "cache-zarr" / "identity.json")
    shards = [
        {"split": "train", "number": i, "rows": 256, "pictures": f"{i:064x}"} for i in range(60_000)
    ]
    identity["pictures"]["shards"] = shards
    del identity["format"]
    geometry = identity.pop("geometry")
    size = (geometry["height"], geometry["width"])
    claim_cache(folder, "many", make_identity(geometry=size, **identity))


def _read_many(folder: Path) -> int:
    (path,) = folder.glob("many-*")
    return len(open_cache(path).shard_ids())


def _zeros(folder: Path) -> None:
    """A row of zeros, which zstd makes 100 times smaller."""
    cache = open_cache(folder / "cache-zarr")
    cache.quarantine(world.TRAIN, "once more")
    with cache.writer(world.TRAIN) as writer:
        for i in range(world.NUM_PICTURES):
            world.append(writer, i, np.zeros((2, 4, 4), np.float16))
        writer.publish({})


def _linked_weights(folder: Path) -> None:
    """A file that the user named may be a link, as hubs lay them out."""
    path = folder / "weights.pt"
    path.symlink_to(path.rename(folder / "blob"))


def _legal() -> Iterator[Case]:
    yield Case(name="60,000 shards", make=_many_shards, read=_read_many, says="")
    yield Case(name="a row of zeros", make=_zeros, read=world.read_rows("zarr"), says="")
    yield Case(name="linked weights", make=_linked_weights, read=world.load_foreign, says="")
    make = world.edit_dataset(partial(_put_class, "été 😀"))
    yield Case(name="a class outside ASCII", make=make, read=world.read_pictures, says="")
    for read in WAYS:
        name = f"the clean world, {read.__qualname__}"
        yield Case(name=name, make=lambda folder: None, read=read, says="")


def _put_class(name: str, body: dict[str, Any]) -> None:
    body["classes"][0] = name


LEGAL = tuple(_legal())


def judge_all(cases: Sequence[Case]) -> Iterator[tuple[Case, Verdict]]:
    """Yield what becomes of each case, in a copy of the clean world that only it sees."""
    with tempfile.TemporaryDirectory() as name:
        clean = Path(name, "clean")
        clean.mkdir()
        _demand(in_child(lambda: world.make_world(clean)))
        for start in range(0, len(cases), _AT_ONCE):
            chosen = {Path(name, f"{i}"): case for i, case in enumerate(cases[start:][:_AT_ONCE])}
            _demand(in_child(partial(_spoil, chosen, clean)))
            for folder, case in chosen.items():
                yield case, in_child(partial(case.read, folder))
                shutil.rmtree(folder)


def _spoil(cases: dict[Path, Case], clean: Path) -> None:
    for folder, case in cases.items():
        shutil.copytree(clean, folder)
        try:
            case.make(folder)
        except Exception as error:
            raise RuntimeError(f"{case.name} cannot be made: {error!r}") from error


def _demand(made: Verdict) -> None:
    if made.outcome != "accepted":
        raise RuntimeError(made.said)


def is_right(case: Case, verdict: Verdict, patience: float = 1.0) -> bool:
    """Whether a case got what it deserves."""
    return verdict.outcome == "accepted" if case in LEGAL else is_good(case, verdict, patience)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="judge only one case in so many")
    parser.add_argument("--patience", type=float, default=1.0, help="times the seconds allowed")
    words = parser.parse_args()
    chosen = (*CASES[:: words.every], *LEGAL)
    wrong = [pair for pair in judge_all(chosen) if not is_right(*pair, words.patience)]
    for case, verdict in wrong:
        print(case.name, verdict, sep=": ")
    print(f"{len(chosen)} cases, {len(wrong)} of them wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
