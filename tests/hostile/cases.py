"""All cases together, and what must be accepted: the clean world, and what is odd and yet legal.

`python tests/hostile/cases.py [EVERY]` judges them (or one in so many), in a process without the
checks of types that tests have, and exits 1 where one is not refused, for its own reason, soon and
small.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import byte_cases
import json_cases
import teacher_cases
import world
from harness import Case, Verdict, in_child, is_good

CASES: tuple[Case, ...] = (*json_cases.CASES, *byte_cases.CASES, *teacher_cases.CASES)
WAYS = (
    world.read_pictures,
    world.read_rows,
    world.use_run,
    world.teach_with_run,
    world.resume,
    world.load_foreign,
    world.teach_with_onnx(),
    world.identify_onnx,
    world.pack_again,
)


def _linked_weights(folder: Path) -> None:
    """A file that the user named may be a link, as hubs lay them out."""
    path = folder / "weights.pt"
    path.symlink_to(path.rename(folder / "blob"))


_named = world.edit_dataset(lambda body: body["classes"].__setitem__(0, "été 😀"))
LEGAL = (
    Case(name="linked weights", make=_linked_weights, read=world.load_foreign, says=""),
    Case(name="a class outside ASCII", make=_named, read=world.read_pictures, says=""),
    *(Case(name=way.__qualname__, make=lambda folder: None, read=way, says="") for way in WAYS),
)


def judge_all(cases: Sequence[Case]) -> Iterator[tuple[Case, Verdict]]:
    """Yield what becomes of each case, in a copy of the clean world that only it sees."""
    with tempfile.TemporaryDirectory() as name:
        clean = Path(name, "clean")
        clean.mkdir()
        _demand(in_child(lambda: world.make_world(clean)))
        for i, case in enumerate(cases):
            folder = Path(name, f"{i}")
            shutil.copytree(clean, folder)
            _demand(in_child(partial(case.make, folder)))
            yield case, in_child(partial(case.read, folder))
            shutil.rmtree(folder)


def _demand(made: Verdict) -> None:
    if made.outcome != "accepted":
        raise RuntimeError(made.said)


def is_right(case: Case, verdict: Verdict) -> bool:
    """Whether a case got what it deserves."""
    return verdict.outcome == "accepted" if case in LEGAL else is_good(case, verdict)


def main() -> None:
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    chosen = (*CASES[::every], *LEGAL)
    wrong = [pair for pair in judge_all(chosen) if not is_right(*pair)]
    for case, verdict in wrong:
        print(case.name, verdict, sep=": ")
    print(f"{len(chosen)} cases, {len(wrong)} of them wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
