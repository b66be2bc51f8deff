"""The folder of a new user for test_mistakes.py: pictures, shards, a cache, runs, broken files."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from stillroom.cli import recipe_from
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.pictures.make import make_shards
from stillroom.pictures.synthetic import draw_shapes
from stillroom.training.loop import train

# what stands for these words in a command
SMALL = "--student.classes 2 --student.width 4 --data.shards shards/people --run.device cpu"
SHORT = {
    "PLAIN": f"tiny-teacher {SMALL} --epochs 1 --batch 8 --micro-batch 8 --run.evaluate-every 1",
    "TINY": f"tiny {SMALL} --teachers.0.path runs/done --batch 8 --micro-batch 8",
}


def words_of(command: str) -> list[str]:
    return " ".join(SHORT.get(word, word) for word in command.split()).split()


def make_world(make_onnx: ModuleType) -> None:
    """Fill the working folder: 24 pictures of two sizes with masks of 0 and 255, packed at 32 px;
    a finished run, `runs/done`, one that was stopped, `runs/begun`; what the first says, cached.
    """
    _make_pictures()
    source, values = "folders:photos,masks", ("0:0", "255:1")
    for name, size, share in (
        ("people", (32, 32), None),
        ("odd", None, None),
        ("other", (32, 32), 0.4),
    ):
        out = Path("shards", name)
        make_shards(source, out=out, size=size, mask_values=values, val_share=share)
    train(recipe_from([*words_of("PLAIN"), "--run.name", "done", "--run.quiet"]))
    shutil.copytree("runs/done", "runs/begun")
    for name in ("student.json", "student.safetensors", "receipt.json"):
        Path("runs/begun", name).unlink()
    cache = cache_teacher(replace(recipe_from(words_of("TINY")), gate="off"), ProcessContext()).path
    shutil.copytree("cache", "half")
    shutil.rmtree(next(Path("half", cache.name).glob("val-*")))
    make_onnx.save_segmenter(Path("net.onnx"))


def _make_pictures() -> None:
    for name in ("photos", "masks", "broken", "empty"):
        Path(name).mkdir()
    for seed in range(24):
        image, mask = draw_shapes(seed, 40 + 8 * (seed % 2))
        Image.fromarray(image).save(f"photos/p{seed:02}.jpg", quality=95)
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(f"masks/p{seed:02}.png")
    shutil.copytree("photos", "broken", dirs_exist_ok=True)
    for name in ("broken/p00.jpg", "junk.onnx", "junk.mp4"):
        Path(name).write_bytes(b"hello\n")
    Path("mine.py").write_text("def recipe():\n    return 1 / 0\n")
