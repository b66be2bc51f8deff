"""The commands as a user types them, on some of the shared pictures; for the tests beside it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def call(script: str, *words: object, status: int = 0) -> str:
    """Run one of the project's scripts with one thread and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def some_of(source: Path, folder: Path, train: int, val: int) -> Path:
    """Return a VOC folder of the first pictures of each split of another."""
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass", "classes.txt"):
        (folder / name).symlink_to(source / name)
    for split, count in (("train", train), ("val", val)):
        names = (source / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        (lists / f"{split}.txt").write_text("\n".join(names[:count]))
    return folder


def lines_of(run: Path, kind: str) -> list[dict]:
    """Return what a run logged: its `train` lines, or `val`."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]
