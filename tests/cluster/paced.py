"""The smallest system, whose steps take as long as the test wants and say that they are made."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from stillroom.losses import CrossEntropy
from stillroom.recipe import Data, Recipe, Run
from stillroom.recipes.tiny import tiny
from stillroom.students.definitions import UNetStudent
from stillroom.teachers.configs import RunTeacher


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced(CrossEntropy):
    """Cross entropy that leaves its process's number for each micro-batch, and takes STEP_S s."""

    def total(self, outputs, batch, progress):
        name = f"micros-{os.environ['SLURM_JOB_ID']}-{os.environ['RANK']}"
        with Path(name).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(float(os.environ.get("STEP_S", "0")))
        return CrossEntropy.total(self, outputs, batch, progress)


def recipe() -> Recipe:
    """30 steps of two micro-batches, evaluated and saved after 15 and 30."""
    teacher = RunTeacher(target="shapes", path="teacher", taps=(("inner", "encoder.2"),))
    return replace(
        tiny(),
        name="paced",
        data=Data(shards="shards"),
        teachers=(teacher,),
        student=UNetStudent(width=4, depth=2, classes=4),
        terms=(Paced(weight=0.3), *tiny().terms[1:]),
        batch=8,
        micro_batch=4,
        epochs=10,
        gate="off",
        run=Run(device="cpu", log_every=1000, evaluate_every=5, workers=1),
    )


def killed() -> Recipe:
    """The same for an array whose two tasks begin together; task 1 is killed in its first shard."""
    task = os.environ["SLURM_ARRAY_TASK_ID"]
    Path(f"begun-{task}").touch()
    while len([*Path().glob("begun-*")]) < 2:
        time.sleep(0.05)
    if task == "1":
        os.environ["STILLROOM_FAULT"] = "row-appended:3"
    return recipe()
