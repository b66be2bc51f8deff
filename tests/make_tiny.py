"""A whole small world for tests: pictures, a teacher of random weights, what it said, a recipe.

24 + 8 letterboxed pictures of 32 x 48 px in shards of 8, the `tiny` recipe over them in steps of
two micro-batches of four. Of the first micro-batch of the first step nearly every pixel is void.
"""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.pictures.keys import share_of
from stillroom.pictures.make import make_shards
from stillroom.pictures.synthetic import CLASSES, draw_shapes
from stillroom.recipe import Data, Recipe, Run
from stillroom.recipes.tiny import tiny
from stillroom.students.definitions import UNetStudent
from stillroom.teachers.configs import RunTeacher
from stillroom.training.checkpoint import save_student
from stillroom.training.order import Order
from stillroom.types import IGNORE

TRAIN, VAL, HEIGHT, WIDTH, MICRO, ROWS = 24, 8, 32, 48, 4, 8


def make_world(folder: Path) -> Path:
    """Fill a folder with `shards`, `teacher` and `cache`."""
    make_pictures(folder)
    make_teacher(folder / "teacher")
    assert cache_teacher(tiny_recipe(folder, folder / "runs"), ProcessContext()).is_complete
    return folder


def tiny_recipe(world: Path, out: Path) -> Recipe:
    """The recipe `tiny` for such a world; its runs go to `out`."""
    teacher = RunTeacher(
        target="shapes", path=str(world / "teacher"), taps=(("inner", "encoder.2"),)
    )
    return replace(
        tiny(),
        data=Data(shards=str(world / "shards")),
        teachers=(teacher,),
        student=UNetStudent(width=4, depth=2, classes=4),
        batch=2 * MICRO,
        micro_batch=MICRO,
        epochs=2,
        gate="off",
        run=Run(out=str(out), cache=str(world / "cache"), device="cpu", log_every=1),
    )


def make_pictures(
    folder: Path, train: int = TRAIN, val: int = VAL, classes: tuple[str, ...] = CLASSES
) -> None:
    """Write and pack pictures of 24 x 48 px, letterboxed to 32 x 48 (height x width)."""
    dealt = sorted(range(train), key=lambda seed: share_of(f"{seed:06}", "shard"))
    stored = [seed for i in range(0, train, ROWS) for seed in sorted(dealt[i : i + ROWS])]
    void = {stored[Order(rows=train, seed=0).at(position)[1]] for position in range(MICRO)}
    sources = {"train": range(train), "val": range(1000, 1000 + val)}
    for split, seeds in sources.items():
        for name in ("images", "masks"):
            (folder / split / name).mkdir(parents=True)
        for seed in seeds:
            image, mask = draw_shapes(seed, WIDTH)
            if split == "train" and seed in void:
                mask[13:] = IGNORE
            for name, array in (("images", image), ("masks", mask)):
                Image.fromarray(array[12:36]).save(folder / split / name / f"{seed:06}.png")
    (folder / "classes.txt").write_text("\n".join(classes))
    texts = {s: f"folders:{folder / s / 'images'},{folder / s / 'masks'}" for s in sources}
    make_shards(
        texts["train"],
        out=folder / "shards",
        val=texts["val"] if val else None,
        val_share=None if val else 0.0,
        size=(HEIGHT, WIDTH),
        fit="letterbox",
        format="png",
        shard_rows=ROWS,
        classes=str(folder / "classes.txt"),
    )


def make_teacher(folder: Path) -> None:
    """Write what is needed of a finished run: random weights and how to build the network."""
    config = UNetStudent(width=4, depth=2, classes=4)
    torch.manual_seed(1)
    save_student(folder, config.build(), {"network": config.architecture()})
