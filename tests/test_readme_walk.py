"""README's five steps work as they are written, and its table of mistakes has the messages."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.__main__ import main
from stillroom.pictures.synthetic import draw_shapes

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SHARDS = "stillroom shards folders:my/images,my/masks"
# commands that are answered with the message of each row, in the order of the table
MISTAKES = {
    "the masks are 0/255": f"{SHARDS} --size 64 64 --out shards/people",
    "shards/people is not": "stillroom train people-teacher",
    "the pictures of shards/odd": "stillroom train people-teacher --data.shards shards/odd",
    "the student's classes": "stillroom train street-teacher --data.shards shards/two",
    "the teacher's folder": "stillroom cache people-few --data.shards shards/two",
    "there is no cache": "stillroom train people-few --data.shards shards/two",
    "one step takes": "stillroom train people-teacher --data.shards shards/two --batch 64",
    "the batch is not": "stillroom train people-teacher --data.shards shards/two --micro-batch 3",
    "fp16 training": "stillroom train people-teacher --data.shards shards/two --precision fp16"
    " --run.device cpu",
    "there is no flag": "stillroom train people-teacher --bach 64",
}
# once a teacher is there
LATER = {
    "the teacher of target": "stillroom cache people-few --gate-floor .99",
    "the run runs/": "stillroom train people-teacher",
}
# the walk in minutes: small pictures, one epoch, no download, no GPU
SHORTER = {
    "--size 256 256": "--size 64 64",
    " --student.weights imagenet": "",
    " --precision fp16": "",
    "--seeds 0 1 2": "--seeds 0",
}
ADDED = {
    "train": "--epochs 1",
    "plan": "--pictures-measured 8 --minutes .1",
    "cache": "--gate off",
    "experiments": "--epochs 1 --data.label-share .5",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder with `my/images` and black and white `my/masks` of differing sizes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT / "src"), *sys.path])
    for name in ("images", "masks"):
        Path("my", name).mkdir(parents=True)
    for seed in range(40):
        image, mask = draw_shapes(seed, 72)
        height, width = 72 - 8 * (seed % 3), 72 - 8 * (seed % 2)
        white = np.where(mask == 0, 0, 255).astype(np.uint8)
        Image.fromarray(image[:height, :width]).save(f"my/images/{seed:03d}.jpg", quality=95)
        Image.fromarray(white[:height, :width]).save(f"my/masks/{seed:03d}.png")
    return tmp_path


def call(line: str, monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def rows_of_mistakes() -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", README[README.index("## What goes wrong") :], re.M)


def expect(mistakes: dict[str, str], monkeypatch, capfd) -> None:
    for begin, line in mistakes.items():
        (message,) = [row for row in rows_of_mistakes() if row.startswith(begin)]
        capfd.readouterr()
        assert call(line, monkeypatch) == 2, line
        said = capfd.readouterr()
        assert message in said.err + said.out, line
        assert "Traceback" not in said.err


def test_the_likeliest_mistakes_are_answered_as_the_table_says(folder, monkeypatch, capfd):
    assert len(rows_of_mistakes()) == len(MISTAKES) + len(LATER)
    grey = "--mask-values 0:0 255:1"
    assert call(f"{SHARDS} {grey} --out shards/odd", monkeypatch) == 0
    assert call(f"{SHARDS} {grey} --size 64 64 --out shards/two", monkeypatch) == 0
    expect(MISTAKES, monkeypatch, capfd)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_five_steps_work_from_an_empty_folder(folder, monkeypatch, capfd):
    monkeypatch.setitem(os.environ, "PYTHONPATH", f"{ROOT / 'src'}")
    steps = README[README.index("## Your own data") : README.index("## Choosing a codec")]
    lines = "".join(re.findall(r"^```\n(.*?)^```", steps, re.M | re.S)).splitlines()
    assert len(lines) == 11
    for line in lines:
        for long, short in SHORTER.items():
            line = line.replace(long, short)
        line = f"{line} {ADDED.get(line.split()[1], '')}".strip()
        assert call(line, monkeypatch) == 0, f"{line}\n{capfd.readouterr().err}"
        if line.startswith("stillroom train people-teacher"):
            expect(LATER, monkeypatch, capfd)
    for made in (
        "runs/check-data/check.html",
        "runs/people-few/report.html",
        "runs/comparison/comparison.html",
        "runs/people-few/export/student.onnx",
        "runs/experiments/comparison.txt",
        "predictions/counts.csv",
    ):
        assert Path(made).is_file(), made
    for command in ("train", "evaluate"):
        row = re.search(rf"^\| `{command}` \|.*$", (ROOT / "docs/commands.md").read_text(), re.M)
        assert row
        written = re.findall(r"`([a-z_.]+/?)`", row[0].split("|")[4])
        assert len(written) > 4
        assert [w for w in written if not Path("runs/people-few", w).exists()] == []
