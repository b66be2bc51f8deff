"""What one process of a run works with."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from stillroom.cache.folder import Cache
from stillroom.device_memory import is_out_of_memory
from stillroom.errors import FailureError, first_line
from stillroom.pictures.dataset import PictureSet
from stillroom.recipe import Recipe
from stillroom.recipe_optimizer import Moment
from stillroom.students.distiller import Distiller
from stillroom.training.average import Average
from stillroom.training.evaluations import Evaluation, scores
from stillroom.training.order import MicroBatchSchedule, RowOrder
from stillroom.training.prefetch import Prefetch
from stillroom.training.running_weights import RunningWeights
from stillroom.training.stream import RowDataset, StoredBatch, training_batches


def run_folder(recipe: Recipe) -> Path:
    """Return where a recipe's run lies."""
    return Path(recipe.run.out) / recipe.run_name


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainContext:
    """What one process of a run works with."""

    recipe: Recipe
    accelerator: Accelerator
    pictures: PictureSet
    cache: Cache | None
    dataset: RowDataset
    validation: RowDataset | None
    order: RowOrder
    schedule: MicroBatchSchedule
    num_rows: int  # of an epoch, whatever the label share
    distiller: Distiller  # bare: evaluated, saved
    model: Any  # the same, as DDP and AMP wrap it: trained
    optimizer: Any
    average: Average | None  # of the distiller's weights, where the recipe wants one
    class_weights: RunningWeights  # of terms that follow what the batches hold
    begin: dict[str, str] | None  # the run that the student began from, and its weights' sha256

    @property
    def counted_targets(self) -> set[str]:
        """The targets whose numbers a term needs before a step's first forward pass."""
        found = (term.needs for term in self.recipe.terms if term.needs.counts_target)
        return {needs.target for needs in found if needs.target is not None}

    @property
    def epoch_steps(self) -> int:
        """Optimiser steps of an epoch."""
        return max(1, self.num_rows // self.recipe.batch)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.recipe.epochs * self.epoch_steps

    def moment(self, step: int, evaluations: Sequence[Evaluation]) -> Moment:
        """Return when a step is, for the learning rate."""
        return Moment(
            step=step,
            steps=self.steps,
            epoch_steps=self.epoch_steps,
            scores=scores(evaluations),
        )

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return run_folder(self.recipe)

    @property
    def is_first(self) -> bool:
        """True for the process that writes and talks."""
        return self.accelerator.is_main_process

    def stream(self, steps: range) -> Generator[StoredBatch, None, None]:
        """Yield this rank's micro-batches of these steps, in order, read ahead."""
        with Prefetch(self.dataset, self.order) as prefetch:
            yield from training_batches(
                self.dataset,
                self.order,
                self.schedule,
                steps,
                augment=self.recipe.augment,
                seed=self.recipe.seed,
                workers=self.recipe.run.num_workers,
                pin=self.accelerator.device.type == "cuda",
                may_substitute=self.recipe.on_damage == "substitute",
                before=prefetch.before,
            )

    def reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks; raises FailureError where one of them is gone."""
        if self.accelerator.num_processes > 1:
            try:
                torch.distributed.all_reduce(values)
            except RuntimeError as error:
                if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
                    raise  # this process's own device
                raise FailureError(
                    "another process of this run has ended",
                    found=first_line(error),
                    fix="see what that process said",
                ) from error
        return values

    def any(self, claim: bool) -> bool:
        """Return whether a claim is true on any rank; waits for the device."""
        return bool(self.reduce(torch.tensor(float(claim), device=self.accelerator.device)) > 0)

    def leave(self) -> None:
        """Part from the other processes: none may end while another may still wait for it."""
        if self.accelerator.num_processes > 1:
            self.accelerator.wait_for_everyone()
            torch.distributed.destroy_process_group()

    def print(self, text: str) -> None:
        """Print a line from rank 0; what is no warning, so nothing with `--run.quiet`."""
        if self.is_first and not self.recipe.run.quiet:
            print(text, flush=True)
