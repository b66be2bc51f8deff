"""How a student is optimised: the optimiser, and its learning rate as a function of the step.

Only `Plateau` reads more than the step: the scores of the evaluations so far, which a checkpoint
holds.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from stillroom.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When a step is, and what is known of the run by then."""

    step: int  # from 0
    steps: int  # of the whole run
    epoch_steps: int  # of an epoch
    scores: tuple[float, ...] = ()  # of the evaluations before it, oldest first

    @property
    def epoch(self) -> float:
        """Epochs that are done, parts of one included."""
        return self.step / self.epoch_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """Rises linearly in the warm-up, then falls by a cosine to the last step."""

    follows_length: ClassVar[bool] = True  # whether another number of epochs changes the rate
    needs_scores: ClassVar[bool] = False

    warmup: float = 0.05  # share of all steps
    final: float = 0.01  # share of lr at which the cosine ends

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        _require_shares(self, "warmup", "final")

    def rate(self, lr: float, moment: Moment) -> float:
        """Return the rate of a step; `lr` is that at the end of the warm-up."""
        step, steps = moment.step, moment.steps
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return lr * (step + 1) / warm
        share = (step - warm) / max(1, steps - 1 - warm)
        return lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineTail:
    """Rises as a square in the warm-up, falls by a cosine, and stays low in the last epochs.

    The formula of bubbliiiing/unet-pytorch at the beginning of each epoch, and between them too.
    """

    follows_length: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = False

    warmup: float = 0.05  # share of the epochs; at least 1 epoch, at most 3
    tail: float = 0.05  # share of the epochs that have the final rate; at least 1 epoch, at most 15
    start: float = 0.1  # share of lr at which the warm-up begins; never below a rate of 1e-6
    final: float = 0.01  # share of lr at which the cosine ends

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        _require_shares(self, "warmup", "tail", "start", "final")

    def rate(self, lr: float, moment: Moment) -> float:
        """Return the rate of a step; `lr` is that at the end of the warm-up."""
        epoch, epochs = moment.epoch, moment.steps / moment.epoch_steps
        warm = min(max(self.warmup * epochs, 1), 3)
        tail = min(max(self.tail * epochs, 1), 15)
        start, final = max(self.start * lr, 1e-6), self.final * lr
        if epoch <= warm:
            return (lr - start) * (epoch / warm) ** 2 + start
        if epoch >= epochs - tail:
            return final
        share = (epoch - warm) / (epochs - warm - tail)
        return final + 0.5 * (lr - final) * (1 + math.cos(math.pi * share))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDecay:
    """Falls in stages of equal length, each by the same factor."""

    follows_length: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = False

    stages: int = 10  # stages of the run, the first with lr itself
    final: float = 0.01  # share of lr that the last stage has

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        _require(self, "stages", self.stages >= 1, "1 or more")
        _require(self, "final", 0 < self.final <= 1, "above 0, at most 1")

    def rate(self, lr: float, moment: Moment) -> float:
        """Return the rate of a step; `lr` is that of the first stage."""
        stage = self.stages * moment.step // moment.steps
        return lr * self.final ** (stage / max(1, self.stages - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One learning rate for all steps."""

    follows_length: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False

    def check(self) -> None:
        """Raise nothing: there is no number."""

    def rate(self, lr: float, moment: Moment) -> float:
        """Return `lr`."""
        return lr


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau:
    """Falls by a factor whenever the score has not become better for some evaluations."""

    follows_length: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = True

    factor: float = 0.5  # what the rate is multiplied by
    # evaluations in a row without a better score that change nothing; the next one is answered
    patience: int = 5
    final: float = 0.0  # share of lr below which the rate does not fall

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        _require_shares(self, "factor", "final")
        _require(self, "patience", self.patience >= 0, "0 or more")

    def rate(self, lr: float, moment: Moment) -> float:
        """Return the rate of a step; `lr` is that before the first fall."""
        best, waited, share = -math.inf, 0, 1.0
        for score in moment.scores:
            waited = 0 if score > best else waited + 1
            best = max(best, score)
            if waited > self.patience:
                share, waited = max(share * self.factor, self.final), 0
        return lr * share


Schedule = Cosine | CosineTail | StepDecay | Constant | Plateau


@dataclass(frozen=True, slots=True, kw_only=True)
class _Optimizer:
    """What the optimisers have in common."""

    lr: float = 1e-3  # learning rate that the schedule begins or warms up to
    weight_decay: float = 0.0  # biases and normalisation layers are left out
    clip: float = 1.0  # largest L2 norm of the gradient; 0 = no clipping
    # the batch that lr is meant for: lr is multiplied by --batch / this; None = lr for any batch
    nominal_batch: int | None = None
    lr_limits: tuple[float, float] | None = None  # least and largest lr after that; None = any

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        lr, decay, clip, nominal = self.lr, self.weight_decay, self.clip, self.nominal_batch
        limits = self.lr_limits or (1.0, 1.0)
        _require(self, "lr", 0 < lr < math.inf, "above 0")
        _require(self, "weight_decay", 0 <= decay < math.inf, ">= 0")
        _require(self, "clip", 0 <= clip < math.inf, ">= 0")
        _require(self, "nominal_batch", nominal is None or nominal >= 1, "1 or more")
        _require(self, "lr_limits", 0 < limits[0] <= limits[1] < math.inf, "0 < least <= largest")
        if self.lr_limits is not None and nominal is None:
            raise UserError(
                "limits of a learning rate that follows no batch",
                found=f"--optimizer.lr-limits {limits[0]} {limits[1]}",
                fix="--optimizer.nominal-batch N too",
            )

    def peak(self, batch: int) -> float:
        """Return the learning rate, before its schedule, of steps of so many pictures."""
        if self.nominal_batch is None:
            return self.lr
        least, largest = self.lr_limits or (0.0, math.inf)
        return min(max(self.lr * batch / self.nominal_batch, least), largest)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW(_Optimizer):
    """Adam with decoupled weight decay."""

    num_moments: ClassVar[int] = 2  # tensors of state for each of the weights

    weight_decay: float = 1e-4  # decoupled; biases and normalisation layers are left out

    def build(self, groups: list[dict[str, Any]], fused: bool | None) -> torch.optim.Optimizer:
        """Return torch's optimiser of these parameter groups."""
        return torch.optim.AdamW(groups, lr=self.lr, fused=fused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(_Optimizer):
    """Adam; weight decay is part of the gradient."""

    num_moments: ClassVar[int] = 2

    def build(self, groups: list[dict[str, Any]], fused: bool | None) -> torch.optim.Optimizer:
        """Return torch's optimiser of these parameter groups."""
        return torch.optim.Adam(groups, lr=self.lr, fused=fused)


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD(_Optimizer):
    """Stochastic gradient descent with momentum; weight decay is part of the gradient."""

    num_moments: ClassVar[int] = 1

    lr: float = 1e-2  # learning rate that the schedule begins or warms up to
    momentum: float = 0.9  # share of the last step's direction that is kept
    nesterov: bool = True  # look ahead by the momentum

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        _Optimizer.check(self)
        _require(self, "momentum", 0 <= self.momentum < 1, "0 to below 1")
        _require(self, "nesterov", self.momentum > 0 or not self.nesterov, "a momentum above 0")

    def build(self, groups: list[dict[str, Any]], fused: bool | None) -> torch.optim.Optimizer:
        """Return torch's optimiser of these parameter groups.

        Momenta begin as zeros: torch makes them of uninitialised memory where it is fused, and a
        first step that overflows (fp16) would leave them so.
        """
        optimizer = torch.optim.SGD(
            groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused
        )
        for parameter in (p for group in groups for p in group["params"] if self.momentum):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer


Optimizer = AdamW | Adam | SGD


def _require(config: Any, name: str, is_legal: bool, wanted: str) -> None:
    if not is_legal:
        owner = "optimizer" if isinstance(config, _Optimizer) else "schedule"
        flag = f"--{owner}.{name.replace('_', '-')}"
        raise UserError(f"no such {flag}", found=getattr(config, name), wanted=wanted)


def _require_shares(config: Schedule, *names: str) -> None:
    for name in names:
        _require(config, name, 0 <= getattr(config, name) <= 1, "0 to 1")
